"""Every script of `examples/` runs, with a tiny model and a few steps."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples"
OPTIONS = {
    "complete_images": "--steps 2 --output picture.png",
    "fill_regions": "--steps 2 --count 2 --output filled.png",
    "sequences": "--steps 2 --count 10",
    "super_resolution": "photos --steps 2 --size 16 --dim 32 --count 4 --output picture.png",
    "train_digits": "--steps 2 --dim 32 --folder run",
}
NO_SCRIPTS = {"gaussian_head"}  # a module that others import


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(name):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *OPTIONS[name].split()])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_all_are_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == OPTIONS.keys() | NO_SCRIPTS


def test_train_digits(run, tmp_path):
    *_, contrast, grid = run("train_digits")
    assert contrast.startswith("contrast of samples ")
    Image.open(tmp_path / grid).verify()


def test_sequences(run):
    *_, process, samples = run("sequences")
    assert process.startswith("process: std of the last token")
    assert samples.startswith("samples: std of the last token")


def test_complete_images(run, tmp_path):
    *_, first, second, picture = run("complete_images")
    assert first.endswith("have the right label")
    assert second.startswith("guidance 2: ")
    assert Image.open(tmp_path / picture).width > 10 * 4 * 8


def test_fill_regions(run, tmp_path):
    *_, loss, filled, iterations = run("fill_regions")
    assert loss.startswith("step 2: loss ")
    assert Image.open(tmp_path / filled).size == (8 * 34 + 2, 2 * 34 + 2)
    assert Image.open(tmp_path / iterations).size == (8 * 34 + 2, 2 * 34 + 2)


def test_super_resolution(run, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(20):
        Image.effect_noise((20, 16), 10 * i).convert("RGB").save(tmp_path / f"photos/{i}.png")
    *_, bicubic, samples, mean, picture = run("super_resolution")
    assert bicubic.startswith("bicubic: PSNR ")
    assert samples.startswith("samples: PSNR ")
    assert mean.startswith("mean of 8 samples: PSNR ")
    assert Image.open(tmp_path / picture).width > 6 * 16
