"""The README and the pages: snippets run, commands exist, pictures and links lead somewhere."""

import importlib.util
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from autoregressive_diffusion_pytorch import ImageTrainer, Trainer
from autoregressive_diffusion_pytorch.cli import main
from autoregressive_diffusion_pytorch.models.sequence_model import SequenceModel

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^((?:<!-- [^\n]* -->\n)?)```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, language):
    """Blocks of code of a page, each with the comment on the line before it."""
    return [
        (comment.strip(), code)
        for comment, found, code in FENCE.findall(page.read_text())
        if found == language
    ]


def snippets():
    """Blocks of Python; one that continues another comes with all that it goes on from."""
    for page in PAGES:
        so_far = ""
        for i, (comment, code) in enumerate(blocks(page, "python")):
            if comment == "<!-- not run -->" or code.startswith("--8<--"):
                continue
            so_far = so_far + code if comment == "<!-- continues -->" else code
            yield pytest.param(so_far, id=f"{page.stem}-{i}")


@pytest.fixture
def short_training(tmp_path, monkeypatch):
    """A folder of images in place of the pages', one step where they do not say how many, and no
    compiler: what it makes is held to the samplers without it in tests/models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    images = tmp_path / "images"
    for i, name in enumerate(["daisy", "rose"] * 8):
        (images / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100 + i, 120), (i, 2 * i, 3 * i)).save(images / name / f"{i}.jpg")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(Trainer.__init__.__kwdefaults__, "num_train_steps", 1)
    monkeypatch.setitem(ImageTrainer.__init__.__kwdefaults__, "num_samples", 1)
    monkeypatch.setitem(SequenceModel.__init__.__kwdefaults__, "depth", 1)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return images


@pytest.mark.filterwarnings("default:images must have values")  # upstream's noise for images
@pytest.mark.parametrize("code", list(snippets()))
def test_a_snippet_runs(code, short_training):
    code = code.replace("/path/to/your/images", str(short_training))
    code = re.sub(r"\bdepth = (8|12)\b", "depth = 1", code)  # the sizes of version 0.4.0's README
    exec(compile(code, "snippet", "exec"), {})


def test_there_are_snippets():
    assert len(list(snippets())) >= 25


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 250


def calls(page):
    """The commands of the package in the blocks of a page, as lists of words."""
    for _, code in blocks(page, "bash"):
        for line in code.splitlines():
            line = line.partition(" #")[0]
            for call in re.findall(
                r"(?:ardiff|-m autoregressive_diffusion_pytorch(?: --)?) +([a-z].*?)(?:$|&&|;|\|)",
                line,
            ):
                yield shlex.split(call)


@pages
def test_commands_are_known(page):
    for command, *arguments in calls(page):
        assert command in main.commands, f"ardiff {command}"
        options = {
            option
            for parameter in main.commands[command].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = {argument for argument in arguments if argument.startswith("-")} - options
        assert not unknown, f"ardiff {command}: {unknown}"


def test_every_command_is_shown():
    assert {command for command, *_ in calls(ROOT / "docs" / "command-line.md")} | {
        "export"
    } >= set(main.commands)


def prose(page):
    return FENCE.sub("", page.read_text())


@pages
def test_pictures_are_there(page):
    for picture in re.findall(r'src="([^"]+)"|!\[[^\]]*\]\(([^)\s]+)\)', prose(page)):
        Image.open(page.parent / "".join(picture)).verify()


def anchors(page):
    """Of the headings of a page, as mkdocs and GitHub both make them."""
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pages
def test_links_lead_somewhere(page):
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert page.parent == ROOT or target.parent == ROOT / "docs", (
            f"{link} is no page of the site"
        )
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", README.read_text()))
    assert linked | {"index.md"} == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_site_builds(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("mkdocs-material and mkdocstrings are not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "api" / "index.html").exists()


def test_the_tree_names_every_module():
    text = (ROOT / "docs" / "contributing.md").read_text()
    tree = text[text.index("<!-- tree -->") : text.index("<!-- /tree -->")]
    for file in (ROOT / "autoregressive_diffusion_pytorch").glob("*/*.py"):
        named = file.name in tree or (file.parent.name == "cli" and file.stem in tree)
        assert named or file.name == "__init__.py", file
    for name in re.findall(r"[\w.]+\.py\b", tree):
        assert list((ROOT / "autoregressive_diffusion_pytorch").rglob(name)), name
