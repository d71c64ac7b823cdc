"""Places where nothing can be written: told in one line, before the work."""

import tempfile
from pathlib import Path

import pytest
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.cli import main
from autoregressive_diffusion_pytorch.cli.options import in_options


@pytest.fixture
def run(call):
    succeeded(call("train", *TINY, "--hold-out", 0.01, "--run", "run"))
    Path("file").touch()


@pytest.fixture
def read_only(monkeypatch):
    """Makes a folder one of a read-only disk."""

    def make(folder):
        temporary_file = tempfile.TemporaryFile

        def refuse(dir, **kwargs):
            if Path(dir).resolve().is_relative_to(Path(folder).resolve()):
                raise OSError(30, "Read-only file system")
            return temporary_file(dir=dir, **kwargs)

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)

    return make


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "run", "--output", "file/x.png"),
        ("sample", "run", "--files", "file"),
        ("sample", "run", "--files", "file/x"),
        ("complete", "run", "image.png", "--keep-rows", 4, "--output", "file/x.png"),
        ("evaluate", "run", "--features", "none", "--output", "file/x.json"),
        ("evaluate", "run", "--surprise", "image.png", "--output", "file/x.png"),
        ("export", "run", "file"),
        ("export", "run", "file/x"),
        ("train", *TINY, "--run", "file"),
        ("train", *TINY, "--run", "file/x"),
    ],
)
def test_an_output_that_cannot_be_written(call, run, monkeypatch, command):
    Image.new("L", (8, 8)).save("image.png")
    for name in ("sample", "complete", "log_prob", "from_pretrained"):
        monkeypatch.setattr(ImageAutoregressiveFlow, name, None)
    output = failed(call(*command)).splitlines()[-1]
    assert "cannot be written: " in output
    assert "file is a file" in output
    assert "file" in output.split(" cannot be written")[0]
    assert output.strip().count("\n") == 0


def test_a_curve_that_cannot_be_written(call, run, monkeypatch):
    Path("x.png").mkdir()
    monkeypatch.setattr(ImageAutoregressiveFlow, "from_pretrained", None)
    command = ("evaluate", "run", "--features", "none", "--curve", "--output", "x.json")
    assert "--curve x.png cannot be written: it is a folder" in failed(call(*command))


def test_settings_that_cannot_be_read(call, run):
    Path("run/generation.json").mkdir()
    assert "Is a directory: 'run/generation.json'" in failed(call("sample", "run", "--count", 1))


def test_a_read_only_run_is_drawn_and_measured_from(call, run, read_only):
    Image.new("L", (8, 8)).save("image.png")
    read_only("run")
    commands = (
        (("sample", "run", "--count", 1, "--steps", 1), "run.sample.0.png"),
        (("complete", "run", "image.png", "--keep-rows", 4), "run.complete.image.0.png"),
        (("evaluate", "run", "--features", "none", "--count", 0), "run.report.2.json"),
    )
    for command, file in commands:
        result = succeeded(call(*command))
        assert f"{file} is written instead" in result.stderr
        assert "cannot be written: Read-only file system" in result.stderr
        assert result.stdout.splitlines()[-1] == file
        assert Path(file).stat().st_size > 0
    message = "RUN run cannot be written: Read-only file system. --dry-run only prints the settings"
    assert message in failed(call("tune", "run"))
    for command in (("resume", "run", "--steps", 3), ("train", *TINY, "--run", "run/new")):
        assert "cannot be written: Read-only file system" in failed(call(*command))


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        (
            "sample",
            "guidance_scale other than 1 needs a model with num_classes or dim_cond",
            "--guidance other than 1 needs a run that was trained with --labels",
        ),
        ("sample", "num_steps must be at least 1", "--steps must be at least 1"),
        (
            "train",
            "folder x holds no folder of images: labels_from_folders = True takes one for each",
            "folder x holds no folder of images: --labels takes one for each",
        ),
        ("train", "nonfinite = 'skip' leaves such", "nonfinite = 'skip' leaves such"),
        ("resume", "labels_from_folders = True", "--labels"),
        ("train", "With num_workers = 0 errors show", "With --workers 0 errors show"),
        ("train", "patch_size 3 does not divide", "--patch-size 3 does not divide"),
        ("train", "/data/image_size/x.png is empty", "/data/image_size/x.png is empty"),
        ("train", "mixed_precision = 'fp16' needs a GPU", "--precision fp16 needs a GPU"),
    ],
)
def test_messages_speak_of_options(command, message, expected):
    with main.make_context("ardiff", [command, "--help"], resilient_parsing=True) as parent:
        context = type(parent)(main.commands[command], parent=parent)
        with context.scope():
            assert in_options(message) == expected


def test_who_names_a_checkpoint_is_told_the_run(call, run):
    for inner, fault in (
        ("checkpoints", "holds no config.json: it is not the folder of a run"),
        ("checkpoints/checkpoint.2", "config.json lacks the key 'source'"),
    ):
        output = failed(call("sample", f"run/{inner}"))
        assert f"{fault}; that is run\n" in output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample run --guidance 2", "--guidance other than 1 needs a run that was trained with"),
        ("sample run --guidance-interval 3 1", "--guidance-interval must be"),
        ("train flat --labels --run new", "flat holds no folder of images: labels need a folder"),
        ("train --run run", "already holds a run with checkpoint.2: `ardiff resume run` goes on"),
        ("train --run new --precision fp16", "--precision fp16 needs a GPU"),
        ("train --patch-size 3 --run new", "--patch-size 3 does not divide --image-size 8"),
    ],
)
def test_no_message_speaks_of_arguments(call, run, flowers, tmp_path, command, message):
    flowers.rename("flat")
    output = failed(call(*command.split())).splitlines()[-1]
    assert message in output
    assert "_" not in output.replace(str(tmp_path), "")
