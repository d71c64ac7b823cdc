"""Benchmarks are run by hand: here each of them starts, and reads what others print."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def script(monkeypatch):  # `benchmark` is a fixture of pytest-benchmark
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield importlib.import_module
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_can_start(script, name, monkeypatch):
    module = script(name)
    if "argparse" in vars(module):
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 0


def test_what_waits_for_a_gpu_runs_on_a_processor(script, tmp_path):
    for i in range(4):
        image = Image.new("RGB", (16, 16), (60 * i, 9, 250))
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / f"images/{i}.png")
    command = ["bash", FOLDER / "gpu.sh", tmp_path / "out", tmp_path / "images"]
    environment = os.environ | dict(DRY="1", HEADS="energy", PYTHON=sys.executable)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    parts = [line.split()[:3] for line in result.stdout.splitlines()]
    names = ("tests", "sampling-float32", "training", "flowers", "samples")
    logs = [path.read_text()[-500:] for path in (tmp_path / "out").glob("*.log")]
    assert parts == [[f"{name}:", "rc", "0"] for name in names], (result, logs)
    assert (tmp_path / "out/samples.png").exists()


def test_configurations_have_names_of_their_own(script):
    configurations = script("configurations")
    as_file_name = script("quality_worker").as_file_name
    for rows in configurations.SETS.values():
        assert len({as_file_name(row.name) for row in rows}) == len(rows)


def test_every_row_of_the_ablations_makes_a_model(script):
    from autoregressive_diffusion_pytorch import (
        ImageAutoregressiveDiffusion,
        ImageAutoregressiveFlow,
    )

    classes = dict(diffusion=ImageAutoregressiveDiffusion, flow=ImageAutoregressiveFlow)
    for row in script("configurations").SETS["ablations"]:
        model = dict(dim=32, depth=1) | row.model | {f"{row.head}_kwargs": row.head_kwargs}
        classes[row.head](model=model, image_size=32, patch_size=row.patch_size, **row.image)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (
            "frechet 1.25  (10 against 20 images)\nfloor   0.04  (the two halves)\n",
            dict(distance=1.25),
        ),
        (
            "   frechet  recall\nfloor  133.1  0.79\nsamples.npy  802.5  -0.01\n",
            dict(frechet=802.5, recall=-0.01),
        ),
        ("3.5e-2", dict(distance=0.035)),
    ],
)
def test_distances_that_commands_print(script, printed, expected):
    assert script("quality").read_distances(printed) == expected
