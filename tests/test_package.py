"""The house: its layers, its public names, and what its distributions hold."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autoregressive_diffusion_pytorch as package

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "autoregressive_diffusion_pytorch"
# folders of a layer import none of each other, and only from layers to their right
LAYERS = [
    {"cli"},
    {"serving"},
    {"runs"},
    {"evaluation", "training"},
    {"data", "models"},
    {"heads"},
    {"utils"},
]


def python(code):
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_all_public_names_are_there():
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'ImageDatasett'"):
        _ = package.ImageDatasett


def test_editors_see_the_public_names():
    imported = {
        alias.asname
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(package.__all__) <= imported


def test_models_come_without_torchvision_and_accelerate():
    loaded = python(
        "import sys; import autoregressive_diffusion_pytorch as p\n"
        "p.ImageAutoregressiveFlow; p.AutoregressiveDiffusion\n"
        "names = ('torchvision', 'accelerate', 'PIL.Image', 'sklearn', 'torchdiffeq')\n"
        "print([name for name in names if name in sys.modules])"
    )
    assert loaded == "[]\n"


def test_the_package_and_its_help_come_without_torch():
    loaded = python(
        "import sys; import autoregressive_diffusion_pytorch.cli; print('torch' in sys.modules)"
    )
    assert loaded == "False\n"


def imports_of(file):
    """The modules of the package that a file imports, but for type checkers alone."""
    tree = ast.parse(file.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith(package.__name__) for alias in node.names), file
        if not isinstance(node, ast.ImportFrom) or id(node) in for_types:
            continue
        assert not (node.module or "").startswith(package.__name__), f"{file}: import relatively"
        if node.level:
            base = file.parents[node.level - 1]
            target = base.joinpath(*(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                inner = (target / alias.name).with_suffix(".py")
                found.add(inner if inner.exists() else _file_of(target))
    return found


def _file_of(module):
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


def source_files():
    return sorted(PACKAGE.rglob("*.py"))


def folder_of(file):
    return file.relative_to(PACKAGE).parts[0]


def test_folders_import_only_from_layers_below():
    layer = {folder: i for i, folders in enumerate(LAYERS) for folder in folders}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == layer.keys()
    for file in source_files():
        if file.parent == PACKAGE:  # the face of the package
            continue
        for imported in imports_of(file):
            inside, to = folder_of(file), folder_of(imported)
            assert inside == to or layer[to] > layer[inside], f"{file} imports {imported}"


def test_no_module_imports_itself_in_a_circle():
    graph = {file: imports_of(file) for file in source_files() if file.parent != PACKAGE}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_tests_mirror_the_folders():
    for folder in set().union(*LAYERS):
        assert list((ROOT / "tests" / folder).glob("test_*.py")), folder


def test_no_module_is_too_long_to_read():
    too_long = {
        str(file.relative_to(PACKAGE)): lines
        for file in source_files()
        if (lines := len(file.read_text().splitlines())) > 350
    }
    assert not too_long


@pytest.mark.parametrize("method", ["sample", "stream", "complete"])
def test_sampling_options_are_named(method):
    function = getattr(package.ImageAutoregressiveFlow, method)
    names = inspect.signature(function).parameters
    assert {"labels", "guidance_scale", "temperature", "num_steps", "solver"} <= names.keys()
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source archive, built from a copy: nothing is left in this folder."""
    folder = tmp_path_factory.mktemp("build")
    left_out = (".*", "venv", "*.egg-info", "__pycache__", "build", "dist", "site")
    of_any = shutil.ignore_patterns(*left_out)

    def ignored(inside, names):  # runs that lie here, but not the folder of the package
        return of_any(inside, names) | ({"runs"} if Path(inside) == ROOT else set())

    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    options = ["--no-isolation", "--outdir", folder / "dist"]
    command = [sys.executable, "-m", "build", *options, folder / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return zipfile.ZipFile(wheel), tarfile.open(archive).getnames()


def test_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _ = distributions
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in source_files()}
    beside = {"py.typed", "serving/page.css"}
    assert files == expected | {f"autoregressive_diffusion_pytorch/{name}" for name in beside}
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_wheel_needs_what_the_package_imports(distributions):
    """Every package that is imported at the top of a module is installed with it; those of
    `serving` with the extra `serve`."""
    wheel, _ = distributions
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = wheel.read(name).decode()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, flags=re.MULTILINE)
    modules = {"pillow": "PIL"}
    known = {modules.get(name, name.replace("-", "_")) for name in needed}
    served = set(re.findall(r'^Requires-Dist: ([\w-]+).*extra == "serve"', metadata, re.MULTILINE))
    for file in source_files():
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for root in {name.partition(".")[0] for name in names}:
                brought = known | served if folder_of(file) == "serving" else known
                assert root in brought or root in sys.stdlib_module_names, f"{file} imports {root}"


def test_source_archive_holds_what_it_takes_to_build_and_test(distributions):
    _, archive = distributions
    files = {name.partition("/")[2] for name in archive}
    assert {str(path.relative_to(ROOT)) for path in source_files()} <= files
    needed = {"LICENSE", "README.md", "setup.py", "pyproject.toml", "mkdocs.yml"}
    needed |= {"tests/conftest.py", "tests/heads/test_head.py", "examples/gaussian_head.py"}
    assert needed | {"images/digits.png", "docs/index.md"} <= files
    assert not any(name.startswith(("benchmarks", ".")) or "__pycache__" in name for name in files)


def test_models_are_imported_in_silence():
    code = (
        "import torch; from autoregressive_diffusion_pytorch import AutoregressiveFlow; "
        "model = AutoregressiveFlow(8, dim_input=1, max_seq_len=2, depth=1, heads=1, dim_head=8); "
        "model.log_prob(torch.randn(1, 2, 1), solver='euler', num_steps=1)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
