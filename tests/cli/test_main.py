import json
import subprocess
import sys
from unittest.mock import Mock

import pytest
from command_line import TINY, failed, succeeded
from PIL import Image
from small_trainings import run_by_two

from autoregressive_diffusion_pytorch.cli import main
from autoregressive_diffusion_pytorch.evaluation import tuning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "nowhere does not exist"),
        (["train", "digits", "--image-size", "16"], "the digits are grey images of 8 x 8 pixels"),
        (["train", "digits", "--patch-size", "3"], "--patch-size 3 does not divide --image-size 8"),
        (
            ["train", "digits", "--head", "gan"],
            "'gan' is none of diffusion, flow, flow_map, energy, nor MODULE:CLASS",
        ),
        (["train", "digits", "--steps", "0"], "0 is not in the range x>=1"),
        (["train", "--seed", "-1"], "-1 is not in the range"),
        (["train", ".", "--labels", "--run", "../elsewhere"], "holds no image"),
        (["sample", "nowhere"], "'nowhere' does not exist"),
        (["complete", ".", "nowhere.png", "--keep-rows", "8"], "'nowhere.png' does not exist"),
        (["sample", "."], "holds no config.json: it is not the folder of a run"),
        (["resume", "."], "holds no config.json: it is not the folder of a run"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call, tmp_path, arguments, message):
    assert message in failed(call(*arguments))
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)])
def test_help_comes_fast_and_explains_every_option(command):
    code = (
        f"import runpy, sys; sys.argv[1:] = {[*command, '--help']}\n"
        "try: runpy.run_module('autoregressive_diffusion_pytorch', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert "Usage:" in result.stdout
    for parameter in main.commands[command[0]].params if command else []:
        assert parameter.param_type_name == "argument" or parameter.help


COMMANDS = """
    import contextlib
    import io
    import json
    import os
    from pathlib import Path

    import torch

    from autoregressive_diffusion_pytorch.cli import main

    outputs = []
    for command in json.loads(Path("commands.json").read_text()):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            main(command, standalone_mode=False)
        outputs.append(output.getvalue())
    torch.save(outputs, os.environ["RANK"] + ".pt")
"""


def test_two_processes_share_a_run_its_samples_and_its_evaluation(call, tmp_path, mean_network):
    train = ["train", *TINY, "--hold-out", 0.008]
    sample = ["sample", "runs/digits", "--count", 5, "--batch-size", 2, "--steps", 2, "--output"]
    evaluate = ["evaluate", "runs/digits", "--features", mean_network, "--count", 11]
    evaluate += ["--batch-size", 4, "--steps", 1, "--output"]
    commands = [train, [*sample, "two.png"], [*evaluate, "two.json"]]
    commands = [[str(argument) for argument in command] for command in commands]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    (trained, drawn, evaluated), silent = run_by_two(COMMANDS, tmp_path)
    assert silent == ["", "", ""]

    assert trained == "runs/digits/samples/results.2.png\n"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]
    assert drawn == "two.png\n"
    succeeded(call(*sample, "one.png"))
    assert Image.open(tmp_path / "one.png").tobytes() == Image.open(tmp_path / "two.png").tobytes()

    assert evaluated.splitlines()[-1] == "two.json"
    succeeded(call(*evaluate, "one.json"))
    assert json.loads((tmp_path / "one.json").read_text()) == json.loads(
        (tmp_path / "two.json").read_text()
    )


def test_every_command_takes_the_best_checkpoint_and_says_so(call, tmp_path, monkeypatch):
    options = ("--hold-out", 0.01, "--checkpoint-every", 1, "--steps", 3)
    succeeded(call("train", *TINY[:-2], *options, "--keep-last", 3))
    folders = sorted((tmp_path / "runs/digits/checkpoints").iterdir())
    for folder, loss in zip(folders, (0.5, 0.1, 0.4), strict=True):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | dict(validation_loss=loss)))
    run = "runs/digits"
    Image.new("L", (8, 8)).save("image.png")
    monkeypatch.setattr(tuning, "tune", Mock(side_effect=ValueError("no tuning here")))
    assert "checkpoint.2 (validation loss 0.1000)" in failed(call("tune", run))
    for command in (
        ("sample", run, "--count", 1),
        ("complete", run, "image.png", "--keep-rows", 6, "--count", 1),
        ("evaluate", run, "--features", "none", "--images", 2, "--count", 0),
        ("export", run, "model"),
    ):
        assert "checkpoint.2 (validation loss 0.1000)" in succeeded(call(*command)).stderr
    assert "checkpoint.3" in succeeded(call("sample", run, "--checkpoint", 3)).stderr
