"""Exported networks: the numbers of the network, and no code of the file."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from autoregressive_diffusion_pytorch.evaluation.metrics import load_feature_network


class Everything(nn.Module):
    """Weights, buffers, constants, sizes that depend on the batch, parts, a block without grad."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("kept", torch.randn(4, 2), persistent=False)
        self.constant = torch.randn(4, 2, dtype=torch.float64)

    def forward(self, images):
        count = images.shape[0]
        features = self.norm(self.conv(images)).mean(dim=(2, 3))
        first, second = features.chunk(2, dim=1)
        with torch.no_grad():
            second = second * 2 + float("1e-3")
        ones = torch.ones(count, 1, device=images.device)
        logits = torch.einsum("bi,ij->bj", features.double(), self.constant).float()
        return torch.cat((first, second, ones), dim=1).reshape(count * 1, -1), logits + (
            features @ self.kept
        )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(3, 24)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return nn.functional.gelu(attended.transpose(1, 2).flatten(2)).mean(dim=1)


def exported(network, file, size=8):
    batch = dict(images={0: torch.export.Dim("batch")})
    program = torch.export.export(
        network.eval(), (torch.rand(2, 3, size, size),), dynamic_shapes=batch
    )
    torch.export.save(program, file)
    return file


@pytest.mark.parametrize("network_class", [Everything, Attention])
def test_gives_the_network_s_numbers(network_class, tmp_path):
    network = network_class()
    loaded = load_feature_network(exported(network, tmp_path / "network.pt2"))
    for count in (1, 5):
        images = torch.rand(count, 3, 8, 8)
        with torch.no_grad():
            found, expected = loaded(images), network(images)
        if network_class is Everything:
            assert isinstance(found, tuple)
        else:
            found, expected = (found,), (expected,)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_other_sizes_than_it_was_exported_for_are_refused(network_file):
    network = load_feature_network(network_file)
    for size in ((2, 3, 9, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"the network takes \(b 3 8 8\), got \("):
            network(torch.rand(size))


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def changed(file, change):
    """The file with `change(name, content)` for the content of each of its members."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))
    return file


@pytest.fixture
def network_file(tmp_path):
    return exported(Everything(), tmp_path / "network.pt2")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code was run"


def pickled(payload):
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def test_the_payload_is_one(marker):
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_sample_inputs_are_not_read(network_file, marker):
    def change(name, content):
        return pickled(Payload(marker)) if "sample_inputs" in name else content

    network = load_feature_network(changed(network_file, change))
    assert network(torch.rand(3, 3, 8, 8))[0].shape == (3, 5)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["weights", "constants"])
@pytest.mark.parametrize("make", [pickled, pickle.dumps])
def test_weights_that_are_code_are_refused(network_file, marker, kind, make):
    def change(name, content):
        if f"data/{kind}/" not in name:
            return content
        if not name.endswith(".json"):
            return make(Payload(marker))
        config = json.loads(content)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config)

    with pytest.raises(ValueError, match=r"holds no network exported by torch\.export\.save"):
        load_feature_network(changed(network_file, change))
    assert not marker.exists()


def program_with(network_file, change_program):
    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        change_program(program)
        return json.dumps(program)

    return changed(network_file, change)


TARGETS = [
    "torch.os.mkdir",
    "torch.ops.aten.save.default",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.__class__.mro",
    "torch.ops.aten.relu.__class__",
    "torch.ops.prim.Print.default",
    "_operator.methodcaller",
    "builtins.eval",
]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_operation_on_tensors_is_refused(network_file, marker, target):
    def change(program):
        node = program["graph_module"]["graph"]["nodes"][0]
        path = dict(name="filename", arg=dict(as_string=str(marker)), kind=1)
        node |= dict(target=target, inputs=[path])

    with pytest.raises(ValueError, match="is no operation on tensors"):
        load_feature_network(program_with(network_file, change))
    assert not marker.exists()


def test_expressions_and_guards_are_not_evaluated(network_file, marker):
    code = f"__import__('os').mkdir({str(marker)!r})"

    def replaced(value):
        if isinstance(value, dict):
            return {k: code if k == "expr_str" else replaced(v) for k, v in value.items()}
        return [replaced(item) for item in value] if isinstance(value, list) else value

    def change(program):
        new = replaced(program)
        program.clear()
        program.update(new, guards_code=[code], range_constraints={code: {}})

    network = load_feature_network(program_with(network_file, change))
    assert network(torch.rand(3, 3, 8, 8))[0].shape == (3, 5)
    assert not marker.exists()


def test_what_is_no_exported_network_is_refused(tmp_path, marker):
    files = {name: tmp_path / name for name in ("text", "empty", "pickle", "zip", "weights")}
    files["text"].write_text("no network")
    files["empty"].touch()
    files["pickle"].write_bytes(pickle.dumps(Payload(marker)))
    torch.save(Payload(marker), files["weights"])
    zipfile.ZipFile(files["zip"], "w").close()
    for file in (*files.values(), tmp_path / "none"):
        with pytest.raises(ValueError, match=r"holds no network exported by torch\.export\.save"):
            load_feature_network(file)
    assert not marker.exists()


def test_a_network_of_two_inputs_is_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    program = torch.export.export(Two(), (torch.rand(2), torch.rand(2)))
    torch.export.save(program, tmp_path / "two.pt2")
    with pytest.raises(ValueError, match="expected a network of one input, got 2"):
        load_feature_network(tmp_path / "two.pt2")
