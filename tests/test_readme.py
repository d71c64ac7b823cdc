"""The README's promises: its snippets run, its pictures are there, its commands are those of the command line."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from PIL import Image

from autoregressive_diffusion_pytorch import ImageTrainer
from autoregressive_diffusion_pytorch.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
HEADINGS = re.split(r"^## ", README, flags=re.MULTILINE)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def snippets():
    for section in HEADINGS:
        for i, code in enumerate(blocks(section, "python")):
            yield pytest.param(code, id=f"{section.splitlines()[0]}-{i}")


@pytest.fixture
def short_training(tmp_path, monkeypatch):
    """A folder of images in the place of the README's, and only a step where it says nothing of the number of steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    images = tmp_path / "images"
    for i, name in enumerate(["daisy", "rose"] * 8):
        (images / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100 + i, 120), (i, 2 * i, 3 * i)).save(images / name / f"{i}.jpg")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("num_train_steps", "num_samples"):
        monkeypatch.setitem(ImageTrainer.__init__.__kwdefaults__, name, 1)
    return images


@pytest.mark.parametrize("code", list(snippets()))
def test_snippet(code, short_training):
    exec(compile(code.replace("/path/to/your/images", str(short_training)), "README.md", "exec"), {})


def test_there_are_snippets():
    assert len(list(snippets())) >= 18


def test_pictures_are_there():
    pictures = re.findall(r'src="([^"]+)"', README)
    assert pictures
    for picture in pictures:
        Image.open(Path(__file__).parents[1] / picture).verify()


def test_commands_are_known():
    lines = [line.partition("#")[0] for block in blocks(README, "bash") for line in block.splitlines()]
    calls = [shlex.split(call) for line in lines for call in re.findall(r"ardiff (.*?)(?:$|&&)", line)]
    assert len(calls) >= 4
    for command, *arguments in calls:
        options = {option for parameter in main.commands[command].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options
