"""Programs of the sampling step: the same tokens as PyTorch's, without this library."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CACHED, parameters, stir
from PIL import Image

from autoregressive_diffusion_pytorch import (
    Autoregressive,
    AutoregressiveFlow,
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveEnergy,
    ImageAutoregressiveFlow,
    ImageAutoregressiveFlowMap,
    MaskedAutoregressive,
)
from autoregressive_diffusion_pytorch.heads import sampler
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.models import program
from autoregressive_diffusion_pytorch.models.card import LOOP, TO_IMAGES, loop_of
from autoregressive_diffusion_pytorch.models.program import (
    Program,
    filled,
    load_program,
    read_settings,
)
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings

SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def images(cls=ImageAutoregressiveFlow, model=None, num_classes=None, **settings):
    torch.manual_seed(0)
    sizes = dict(image_size=(6, 4), patch_size=2, channels=1, num_classes=num_classes)
    made = stir(cls(model=SMALL | (model or {}), **sizes))
    made.generation = GenerationSettings(**settings)
    return made


def sequences(cls=AutoregressiveFlow, **arguments):
    torch.manual_seed(0)
    made = stir(cls(**SMALL | dict(dim_input=3, max_seq_len=6) | arguments))
    made.measure(5 * torch.randn(8, 6, 3) + 2, lens=torch.tensor([3, 4, 5, 6] * 2))
    return made


def eager(made):
    """The step of a program as it is, without any export."""

    def run(inputs):
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.no_grad():
            outputs = made.step(tensors)
        return dict(zip(made.step.outputs, (tensor.numpy() for tensor in outputs), strict=True))

    return run


GUIDED = dict(num_classes=3, guidance_scale=2.0)
STEPS = {
    "flow": images,
    "diffusion": lambda: images(ImageAutoregressiveDiffusion, solver="euler", num_steps=3),
    "with fresh noise": lambda: images(
        ImageAutoregressiveDiffusion, dict(diffusion_kwargs=dict(S_churn=10.0))
    ),
    "map": lambda: images(ImageAutoregressiveFlowMap, num_steps=2),
    "energy": lambda: images(ImageAutoregressiveEnergy, temperature=0.8),
    "labels": lambda: images(num_classes=3),
    "guided": lambda: images(**GUIDED),
    "guided by an interval": lambda: images(
        **GUIDED, guidance_schedule="linear", guidance_interval=(0.1, 2.0), context_guidance=1.5
    ),
    "guided conditions": lambda: images(
        **GUIDED, guidance_target="conditions", context_guidance=1.5
    ),
    "unconditional": lambda: images(num_classes=3, guidance_scale=0.0),
    "context": lambda: images(context_guidance=1.5),
    "sequences": sequences,
    "ends": lambda: sequences(predict_end=True, num_recent=3),
    "sphere": lambda: sequences(normalize=dict(radius=4.0)),
    "memory": lambda: sequences(decoder_kwargs=dict(attn_num_mem_kv=2, use_rmsnorm=True)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_draws_as_the_model_does(name):
    made = Program(STEPS[name](), "torch")
    assert made.difference(eager(made), made.model.max_seq_len) < 1e-5


@pytest.mark.parametrize("decoder_kwargs", parameters(CACHED))
def test_a_step_runs_all_layers_that_have_a_cache(decoder_kwargs):
    made = Program(sequences(depth=2, num_classes=2, decoder_kwargs=decoder_kwargs), "torch")
    assert made.difference(eager(made), made.model.max_seq_len) < 1e-5


def test_a_step_goes_on_from_several_tokens_at_once():
    model = sequences(num_recent=2, predict_end=True, num_classes=3)
    made = Program(model, "torch")
    step, settings = eager(made), made.settings()
    tokens = 5 * np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32)
    one_by_one = filled(settings["inputs"], dict(batch=2, count=settings["num_start"], length=0))
    start = np.full_like(one_by_one["tokens"], 7)  # is not read
    together = one_by_one | dict(tokens=np.concatenate((start, tokens), axis=1))
    outputs = step(one_by_one)
    for token in tokens.transpose(1, 0, 2):
        one_by_one |= {name: outputs[f"next_{name}"] for name in settings["state"]}
        outputs = step(one_by_one | dict(tokens=token[:, None]))
    at_once = step(together)
    assert at_once.keys() == outputs.keys() == set(settings["outputs"])
    for name, value in outputs.items():
        np.testing.assert_allclose(at_once[name], value, atol=1e-5)
    ends = made.model.conditions(
        made.model.normalization(torch.from_numpy(np.pad(tokens, ((0, 0), (0, 1), (0, 0))))),
        labels=torch.zeros(2, dtype=torch.long),
    )[:, -1]
    expected = made.model.end_head.log_odds(ends).sigmoid().detach()
    np.testing.assert_allclose(outputs["end_probability"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: images(ImageAutoregressiveDiffusion, num_steps=1),
        lambda: sequences(
            Autoregressive, head="flow_map", num_classes=3, predict_end=True, num_recent=2
        ),
    ],
    ids=["images", "sequences"],
)
def test_torch_exports_a_step(tmp_path, model):
    made = Program(model(), "torch")
    assert made.write(tmp_path) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"program.pt2", "sampling.json"}
    assert made.difference(load_program(tmp_path), made.model.max_seq_len) < 1e-5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, and the folder of its program of ONNX, to which it exports slowly."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="a program of ONNX needs the extra [export]")
    folder = tmp_path_factory.mktemp("exported")
    model = images(num_steps=2, temperature=0.9, **GUIDED)
    assert Program(model).write(folder) < 1e-5
    model.save_pretrained(folder, model_card_kwargs=dict(program="program.onnx"))
    return model, folder


def test_onnxruntime_draws_the_same_images_for_any_batch_labels_and_scale(exported):
    model, folder = exported
    made, settings = Program(model), read_settings(folder)
    run = load_program(folder, num_threads=1)
    assert made.difference(run, made.model.max_seq_len) < 1e-5
    for batch, scale in ((1, 0.0), (5, 3.0)):
        inputs = filled(
            settings["inputs"], dict(batch=batch, count=settings["num_start"], length=0)
        )
        noise = np.random.default_rng(batch).standard_normal(inputs["noise"].shape)
        inputs |= dict(
            noise=noise.astype(np.float32),
            labels=np.arange(batch)[::-1] % 3,
            guidance_scale=np.full(batch, scale, np.float32),
        )
        for name, value in eager(made)(inputs).items():
            np.testing.assert_allclose(run(inputs)[name], value, atol=1e-5)


def test_the_lines_of_the_card_draw_without_torch(exported, monkeypatch):
    model, folder = exported
    card = (folder / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(# pip install numpy.*?)```", card, flags=re.DOTALL)
    code = f"import sys; sys.modules['torch'] = None\n{lines}"
    command = [sys.executable, "-c", code]
    drawn = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr

    rng = np.random.default_rng(seed=0)
    noise = lambda shape, *_: torch.from_numpy(rng.standard_normal(shape)).float()  # noqa: E731
    monkeypatch.setattr(sampler, "randn", noise)
    expected = model.sample(labels=[0, 1, 2, 0]).squeeze(1).mul(255).numpy()
    assert expected.std() > 10
    for i, image in enumerate(expected):
        found = np.asarray(Image.open(folder / f"{i}.png"), dtype=np.float32)
        assert found.shape == (6, 4)
        assert np.abs(found - image).max() < 0.51


@pytest.mark.parametrize("predict_end", [False, True])
def test_the_lines_of_a_card_draw_sequences(tmp_path, monkeypatch, predict_end):
    model = sequences(predict_end=predict_end, num_recent=2)
    made = Program(model, "torch")
    run = eager(made)
    (tmp_path / "sampling.json").write_text(json.dumps(made.settings()))
    session = SimpleNamespace(run=lambda _, inputs: list(run(inputs).values()))
    module = SimpleNamespace(InferenceSession=lambda _: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(loop_of(model).replace("batch, rng = 4", "batch, rng = 200"), found)
    assert found["tokens"].shape == (200, 6, 3)
    if predict_end:
        lens = np.array([len(seq) for seq in found["sequences"]])
        _, expected = model.sample(400, generator=torch.Generator().manual_seed(0))
        assert 1 <= lens.min() < lens.max() <= 6
        assert abs(lens.mean() - expected.float().mean()) < 0.5


def test_the_page_on_sharing_shows_the_same_lines():
    page = Path(__file__).parents[2] / "docs" / "sharing.md"
    assert f"```python\n{LOOP}{TO_IMAGES}```" in page.read_text()


def test_large_weights_lie_in_a_second_file(tmp_path, monkeypatch):
    files = []
    monkeypatch.setattr(program, "need_onnx", lambda: None)
    monkeypatch.setattr(
        torch.export, "export", lambda *_, **__: SimpleNamespace(range_constraints={})
    )
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: files.append(options))
    made = Program(images())
    for limit, expected in ((10, True), (10**9, False)):
        monkeypatch.setattr(program, "ONE_FILE", limit)
        made._export(tmp_path / "program.onnx")
        assert files.pop()["external_data"] is expected


def test_sampling_json_says_what_the_loop_must_know():
    settings = Program(images(temperature=0.9, num_steps=3, **GUIDED), "torch").settings()
    assert settings["images"] == dict(
        grid=(3, 2), patch_size=(2, 2), channels=1, value_range=[-1, 1]
    )
    assert (settings["num_start"], settings["num_tokens"], settings["num_classes"]) == (5, 6, 3)
    assert settings["temperature"] == 0.9
    assert settings["baked_in"]["num_steps"] == 3
    assert settings["inputs"]["guidance_scale"]["initial"] == 2.0
    assert settings["inputs"]["cache_0"]["shape"] == ["batch", 2, 2, "length", 8]
    plain = Program(images(num_classes=3), "torch").settings()
    assert plain["inputs"]["cache_0"]["shape"] == ["batch", 1, 2, "length", 8]
    assert "guidance_scale" not in plain["inputs"]
    asked = Program(images(num_classes=3), "torch", guidance_scale=1.5).settings()
    assert asked["inputs"]["guidance_scale"]["initial"] == 1.5


def test_a_program_leaves_its_model_as_it_is():
    model = images(num_classes=3)
    Program(model, "torch", guidance_scale=1.5)
    assert model.training
    assert model.generation == GenerationSettings()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_a_program_that_draws_other_tokens_is_refused(tmp_path, monkeypatch, difference):
    monkeypatch.setattr(Program, "_export", lambda *_: None)
    monkeypatch.setattr(program, "load_program", lambda *_: None)
    monkeypatch.setattr(Program, "difference", lambda *_: difference)
    made = Program(images(ImageAutoregressiveEnergy), "torch")
    with pytest.raises(ValueError, match=r"differ by up to .* from PyTorch's, more than 0\.0001"):
        made.write(tmp_path)


def test_what_torch_cannot_export_is_told(tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("the length\nis a number")

    monkeypatch.setattr(Program, "_exported", fail)
    made = Program(sequences(decoder_kwargs=dict(alibi_pos_bias=True)), "torch")
    with pytest.raises(
        ValueError, match=r"cannot export this model with decoder_kwargs = .*alibi.*: the length$"
    ):
        made.write(tmp_path)


class Own(Head):
    """A head that draws in a way of its own."""

    def __init__(self, dim_token, dim_z, *, width, depth):
        super().__init__(dim_token, dim_z)

    def forward(self, tokens, z):
        return tokens.square().mean(dim=-1)

    def sample(self, z, *, guidance=(), temperature=1.0, generator=None):
        return z[..., : self.dim_token]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: sequences(MaskedAutoregressive, head="flow"), "raster order, this one .* masked"),
        (lambda: sequences(order="random"), "in raster order, this one .* random"),
        (lambda: AutoregressiveFlow(max_seq_len=6, **SMALL), "are trained; normalization of this"),
        (lambda: sequences(dim_cond=3), "with labels or without; this one takes vectors"),
        (lambda: sequences(Autoregressive, head=Own), "and heads diffusion, .*; this one has Own"),
        (
            lambda: sequences(decoder_kwargs=dict(shift_tokens=1)),
            "with a key/value cache; decoder_kwargs make this one without",
        ),
    ],
)
def test_models_without_a_program_are_told_what_can_be(model, message):
    with pytest.raises(ValueError, match=message):
        Program(model(), "torch")


def test_a_model_of_latents_has_no_program(autoencoder):
    model = ImageAutoregressiveFlow(
        model=SMALL, image_size=8, patch_size=1, autoencoder=str(autoencoder)
    )
    with pytest.raises(ValueError, match="of pixels or of sequences; this one needs its autoenc"):
        Program(model, "torch")


def test_settings_that_the_model_cannot_have_are_refused():
    with pytest.raises(ValueError, match="guidance_scale other than 1 needs a model"):
        Program(images(), "torch", guidance_scale=2.0)
    with pytest.raises(ValueError, match="format must be one of"):
        Program(images(), "jax")


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxruntime.*\[export\]"):
        Program(images())
