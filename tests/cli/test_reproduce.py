"""The command in a model card gives the configuration of its run."""

import json
import shlex
from importlib import import_module

import pytest
from command_line import TINY, succeeded

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.cli.reproduce import train_command


@pytest.fixture
def configured(call, monkeypatch):
    """Calls `ardiff train`, which trains nothing: the configuration of its run."""
    configs = []
    for name in ("train", "finetuning"):
        module = import_module(f"autoregressive_diffusion_pytorch.cli.{name}")
        monkeypatch.setattr(module, "start_run", lambda config, *_, **__: configs.append(config))

    def configured(words):
        succeeded(call(*words))
        return json.loads(json.dumps(configs.pop()))

    return configured


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train", "train digits"),
        ("train digits --size tiny --lr-schedule constant", "train digits"),
        ("train digits --labels --hold-out 0.1", "train digits --labels --hold-out 0.1"),
        (
            "train --dim 256 --depth 6 --mlp-width 384 --learning-rate 1e-3",
            "train digits --size small",
        ),
        ("train --size small --depth 7", "train digits --size small --depth 7"),
        ("train --epochs 3 --minutes 2", "train digits --epochs 3 --minutes 2"),
        ("train --order random --head diffusion", "train digits --head diffusion --order random"),
        ("train --order masked --noise-draws 1", "train digits --order masked --noise-draws 1"),
        ("train --head energy --seed 3", "train digits --head energy --seed 3"),
        (
            "train --batch-size 4 --accumulate 2 --compile --gradient-checkpointing --workers 1",
            None,
        ),
        ("train --weight-decay 0 --max-grad-norm 2 --nonfinite skip --precision bf16", None),
        ("train --sample-every 9 --checkpoint-every 8 --keep-last 7 --log-with all", None),
        ("train flowers --image-size 8 --patch-size 4 --flip --cache --max-pixels 9999", None),
        ("train flowers --image-size 8 --patch-size 4 --size base --skip-damaged", None),
        ("train speech", "train speech --ends"),
        ("train speech --labels --no-ends --dropout 0.1 --input-noise 0 --max-length 5", None),
        ("train speech --order random --size tiny", None),
        ("train cache --labels --patch-size 2", "train cache --patch-size 2 --labels"),
        (
            "train flowers --from model --freeze head --freeze proj_in --flip --steps 9",
            "train flowers --from model --freeze head --freeze proj_in --image-size 8 "
            "--noise-draws 1 --steps 9 --flip",
        ),
    ],
)
def test_a_command_gives_the_same_configuration(request, configured, given, expected):
    for name in ("flowers", "cache"):
        if name in given:
            request.getfixturevalue(name)
    if "--from model" in given:
        sizes = dict(dim=16, depth=1, heads=2, dim_head=64, mlp_depth=1, mlp_width=16)
        model = ImageAutoregressiveFlow(model=sizes, image_size=8, patch_size=4, channels=1)
        model.save_pretrained("model")
    config = configured(shlex.split(given))
    told = train_command(config, "mine")
    if expected is not None:
        assert told == f"ardiff {expected} --run runs/mine"
    assert configured(shlex.split(told)[1:]) == config


def test_names_of_folders_alone_are_told(configured, flowers):
    flowers.rename(flowers.with_name("my flowers"))
    config = configured(["train", flowers.with_name("my flowers"), "--image-size", 8])
    told = train_command(config, "my run")
    assert told == "ardiff train 'my flowers' --image-size 8 --run 'runs/my run'"


def test_a_distilled_run_has_no_such_command(call, tmp_path):
    succeeded(call("train", *TINY, "--run", "teacher"))
    succeeded(call("distill", "teacher", "--run", "student", "--steps", 1))
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert train_command(config, "student") is None
    succeeded(call("export", "student", "exported"))
    card = (tmp_path / "exported/README.md").read_text()
    assert "ardiff train" not in card
    assert "ardiff sample runs/student --checkpoint 1" in card
    assert "| distilled from | a model with the head flow |" in card
