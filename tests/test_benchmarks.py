"""Benchmarks are run by hand: here each of them starts, and reads what others print."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import succeeded
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


# in place of Python: its own tests and a benchmark with a worker run; what would only import the
# package once more is written down
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m pytest"|benchmarks/sampling.py*) exec "$REAL_PYTHON" "$@";;
esac
printf '%s\\n' "$@" END >> "$CALLS"
"""


class WorkerHere:
    """A worker of this process."""

    def __init__(self, module, monkeypatch, arguments):
        monkeypatch.setattr(module, "serve", lambda **functions: vars(self).update(functions))
        module.work(*arguments[1:])

    def ask(self, what):
        return json.loads(json.dumps(vars(self)[what]()))

    def close(self):
        pass


def test_what_waits_for_a_gpu_runs_on_a_processor(script, tmp_path, monkeypatch, call):
    for i in range(4):
        image = Image.new("RGB", (16, 16), (60 * i, 9, 250))
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / f"images/{i}.png")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    command = ["bash", FOLDER / "gpu.sh", tmp_path / "out", tmp_path / "images"]
    environment = os.environ | dict(DRY="1", HEADS="energy", PYTHON=str(python))
    environment |= dict(REAL_PYTHON=sys.executable, CALLS=str(tmp_path / "calls"))
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    parts = [line.split()[:3] for line in result.stdout.splitlines()]
    names = ("tests", "sampling-float32", "training", "flowers", "samples")
    logs = [path.read_text()[-500:] for path in (tmp_path / "out").glob("*.log")]
    assert parts == [[f"{name}:", "rc", "0"] for name in names], (result, logs)

    calls = (tmp_path / "calls").read_text().split("END\n")[:-1]
    (file, *training), *commands = [one.splitlines() for one in calls]
    module = script(Path(file).stem)
    monkeypatch.setattr(module, "Worker", lambda _, *own: WorkerHere(module, monkeypatch, own[0]))
    monkeypatch.setattr(sys, "argv", [file, *training])
    module.main()
    for flag, package, *arguments in commands:
        assert (flag, package) == ("-m", "autoregressive_diffusion_pytorch")
        succeeded(call(*arguments))
    assert (tmp_path / "out/samples.png").exists()


@pytest.mark.parametrize("code", [0, 3])
def test_a_part_that_fails_is_named(tmp_path, code):
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\n[ "$1" != benchmarks/training.py ] || exit {code}\n')
    python.chmod(0o755)
    command = ["bash", FOLDER / "gpu.sh", tmp_path / "out", tmp_path]
    result = subprocess.run(
        command, env=os.environ | dict(DRY="1", PYTHON=str(python)), capture_output=True, text=True
    )
    assert result.returncode == min(code, 1)
    failed = {line.split(":")[0] for line in result.stdout.splitlines() if "rc 0" not in line}
    assert failed == ({"training"} if code else set())


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
