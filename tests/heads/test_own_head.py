"""A head of one's own, `examples/gaussian_head.py`, through model, trainer and command line."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from command_line import TINY, failed, succeeded
from helpers import assert_mean, assert_std

from autoregressive_diffusion_pytorch import (
    Autoregressive,
    AutoregressiveFlow,
    ImageAutoregressive,
    ImageTrainer,
)
from autoregressive_diffusion_pytorch.evaluation.report import evaluate
from autoregressive_diffusion_pytorch.evaluation.tuning import axes_of
from autoregressive_diffusion_pytorch.heads.head import Head

NAME = "gaussian_head:GaussianHead"
SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_width=16, mlp_depth=1)


@pytest.fixture(autouse=True)
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    sys.modules.pop("gaussian_head", None)


@pytest.fixture
def head_class():
    from gaussian_head import GaussianHead

    return GaussianHead


def test_samples_follow_the_learned_density(head_class):
    """The second token is the negative first, with a standard deviation of 0.3."""
    torch.manual_seed(0)
    model = Autoregressive(**SMALL, dim_input=1, max_seq_len=2, head=head_class)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        first = torch.randn(256, 1, 1)
        seq = torch.cat((first, 0.3 * torch.randn_like(first) - first), dim=1)
        optimizer.zero_grad()
        model(seq).backward()
        optimizer.step()
    first, second = model.sample(4000).squeeze(-1).unbind(dim=1)
    # 300 steps come within a tenth of the optimum
    assert_mean(first, 0.0, extra=0.1)
    assert_std(first, 1.0, extra=0.1)
    assert_std(second + first, 0.3, extra=0.03)
    _, densities = model.log_prob(seq).unbind(dim=1)
    expected = -0.5 - math.log(0.3) - 0.5 * math.log(2 * math.pi)  # on average
    assert_mean(densities, expected, extra=0.1)


def test_a_saved_model_loads_where_its_head_is_imported_and_nowhere_else(head_class, tmp_path):
    model = Autoregressive(**SMALL, max_seq_len=4, num_classes=2, head=NAME)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["head"] == NAME
    loaded = Autoregressive.from_pretrained(tmp_path)
    options = dict(labels=[0, 1], guidance_scale=2.0)
    samples = [
        m.sample(4, **options, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)
    ]
    assert torch.equal(*samples)
    del sys.modules["gaussian_head"]
    with pytest.raises(ValueError, match=f"head '{NAME}' is not of this library: import gaussian"):
        Autoregressive.from_pretrained(tmp_path)


def test_options_that_the_head_does_not_have_are_refused(head_class):
    model = Autoregressive(**SMALL, max_seq_len=4, head=head_class)
    with pytest.raises(ValueError, match="an option of GaussianHead must be one of 'temperature'"):
        model.sample(num_steps=5)
    flow = AutoregressiveFlow(**SMALL, max_seq_len=4)
    with pytest.raises(TypeError, match=r"sample\(\) got an unexpected argument 'temperatur': did"):
        flow.sample(temperatur=1.0)


@pytest.mark.parametrize("head", ["gauss", "math:pi", "json:JSONDecoder", dict])
def test_what_is_no_head_is_refused(head):
    with pytest.raises(
        ValueError, match=r"head must be one of 'diffusion', 'flow', .*'module:Class'"
    ):
        Autoregressive(**SMALL, max_seq_len=4, head=head)


def test_images_train_and_are_evaluated(head_class, tmp_path):
    sequences = SMALL | dict(head=head_class)
    model = ImageAutoregressive(image_size=8, patch_size=4, channels=1, model=sequences)
    images = torch.rand(12, 1, 8, 8)
    folders = {name: tmp_path / name for name in ("checkpoints_folder", "results_folder")}
    options = dict(num_train_steps=2, num_samples=4, logs_folder=tmp_path / "logs", **folders)
    ImageTrainer(model, dataset=images, **options, accelerate_kwargs=dict(cpu=True))()
    loaded = ImageAutoregressive.from_pretrained(tmp_path / "checkpoints_folder" / "checkpoint.2")
    assert type(loaded.head) is head_class
    report = evaluate(loaded, images)
    assert report["generated"]["evaluations"] == 1
    assert report["bits_per_dim"].keys() == {"mean", "standard_error", "density"}
    assert "num_steps" not in axes_of(loaded)
    with pytest.raises(ValueError, match="evaluations must be none for GaussianHead"):
        evaluate(loaded, images, evaluations=[4])


def test_all_commands_take_it(call, example):
    succeeded(call("train", "digits", "--run", "run", "--head", NAME, "--hold-out", 0.02, *TINY))
    del sys.modules["gaussian_head"]
    assert f"name it with --head {NAME}" in failed(call("sample", "run"))
    own = ("run", "--head", NAME)
    succeeded(call("resume", *own, "--steps", 3))
    succeeded(call("sample", *own, "--count", 4, "--temperature", 0.5, "--context-guidance", 2))
    assert "must be one of 'temperature'" in failed(call("sample", *own, "--steps", 4))
    assert "bits per dimension" in call("evaluate", *own, "--features", "none").output
    assert "--curve" not in succeeded(call("tune", *own, "--dry-run", "--count", 10)).output
    succeeded(call("export", *own, "model"))
    card = Path("model/README.md").read_text()
    assert "ImageAutoregressive.from_pretrained" in card


def test_a_head_that_cannot_be_imported_is_refused(call):
    for head, fault in [
        ("gauss", "'gauss' is none of diffusion, flow, flow_map, energy, nor MODULE:CLASS"),
        ("no_such_module:Head", "No module named 'no_such_module'"),
        ("gaussian_head:Head2", "head must be one of"),
    ]:
        assert fault in failed(call("train", "digits", "--head", head))


def test_a_head_without_a_density_names_those_that_have_one(head_class):
    class Sampler(head_class):
        log_prob = Head.log_prob

        def forward(self, tokens, z):
            return (self.mean_and_log_scale(z)[0] - tokens).square().mean(dim=-1)

    sequences = SMALL | dict(head=Sampler)
    model = ImageAutoregressive(image_size=8, patch_size=4, channels=1, model=sequences)
    images = torch.rand(12, 1, 8, 8)
    model(images).backward()
    with pytest.raises(TypeError, match=r"Sampler has no density: .* have one are diffusion, flow"):
        model.log_prob(images)
    report = evaluate(model, images)
    assert "bits_per_dim" not in report
    assert report["generated"]["count"] == 12
