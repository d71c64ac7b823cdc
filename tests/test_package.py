import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import autoregressive_diffusion_pytorch as package

ROOT = Path(__file__).parents[1]


def python(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout


def test_all_public_names_are_there():
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'ImageDatasett'"):
        _ = package.ImageDatasett


def test_models_come_without_torchvision_and_accelerate():
    loaded = python(
        "import sys; import autoregressive_diffusion_pytorch as p; p.ImageAutoregressiveFlow; p.AutoregressiveDiffusion\n"
        "print([m for m in ('torchvision', 'accelerate', 'PIL.Image', 'sklearn') if m in sys.modules])"
    )
    assert loaded == "[]\n"


# the floors of the house: a room imports only from those below it
FLOORS = [
    {"checks", "solvers", "compilation", "modes", "gradient_checkpointing", "processes", "evaluation_plots", "sliced_wasserstein"},
    {"checkpoints", "random_states", "stop_signals", "optimization", "running_average", "image_grids"},
    {"denoiser", "backbone", "likelihood", "heads.guidance", "image_dataset", "training_state", "utilization"},
    {"heads.head", "conditioning", "training_data", "training_log"},
    {"heads.denoising", "generation"},
    {"heads.elucidated_diffusion", "heads.rectified_flow", "pretrained"},
    {"heads", "image_trainer"},
    {"autoregressive"},
    {"image"},
    {"evaluation"},
    {"tuning", "run_folder"},
    {"cli_drawing", "cli_evaluation"},
    {"cli"},
    {"__main__"},
]


def test_imports_run_only_downwards():
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {}
    for file in (ROOT / "autoregressive_diffusion_pytorch").rglob("*.py"):
        parts = file.relative_to(ROOT / "autoregressive_diffusion_pytorch").with_suffix("").parts
        room = ".".join(part for part in parts if part != "__init__")
        if room:
            text = file.read_text()
            imports = re.findall(r"(?:from|import) autoregressive_diffusion_pytorch\.([\w.]+)", text)
            names = re.findall(r"from autoregressive_diffusion_pytorch import (\w.*)", text)
            public = [package._ROOMS[name] for line in names for name in line.split(", ")]
            rooms.setdefault(room, set()).update(imports, public)
    assert rooms.keys() == floor.keys()
    for room, imports in rooms.items():
        for imported in imports - {room}:
            assert floor[imported] < floor[room], f"{room} imports {imported}"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source archive, built from a copy, so that nothing is left in this folder."""
    folder = tmp_path_factory.mktemp("build")
    ignore = shutil.ignore_patterns(".git", ".venv", "venv", "*.egg-info", "__pycache__", "build", "dist", "runs", ".*_cache")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return zipfile.ZipFile(wheel).namelist(), tarfile.open(archive).getnames()


def source_files():
    return {str(path.relative_to(ROOT)) for path in (ROOT / "autoregressive_diffusion_pytorch").rglob("*.py")}


def test_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _ = distributions
    files = {name for name in wheel if ".dist-info/" not in name}
    assert files == source_files() | {"autoregressive_diffusion_pytorch/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_source_archive_holds_what_it_takes_to_build_and_test(distributions):
    _, archive = distributions
    files = {name.partition("/")[2] for name in archive}
    assert source_files() <= files
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml", "tests/conftest.py", "tests/heads/test_head.py"} <= files
    assert not any(name.startswith(("benchmarks", ".")) or "__pycache__" in name for name in files)
