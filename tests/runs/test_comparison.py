import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from autoregressive_diffusion_pytorch.runs.comparison import compare_runs, settings_of
from autoregressive_diffusion_pytorch.runs.comparison_page import page_of
from autoregressive_diffusion_pytorch.runs.comparison_picture import write_picture
from autoregressive_diffusion_pytorch.runs.record import RunRecord


def change(run, name="config", **changes):
    """Changes values in a file of a run."""
    file = run / f"{name}.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(config))


def write_report(run, bits, distance, count=10, source="held out"):
    report = dict(checkpoint="checkpoint.4", source=source, images=20)
    report |= dict(bits_per_dim=dict(mean=bits), generated=dict(count=count))
    report["generated"]["sliced_wasserstein"] = distance
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "report.4.json").write_text(json.dumps(report))


@pytest.fixture
def runs(trained, tmp_path):
    """Two runs that are the same so far."""
    return [shutil.copytree(trained, tmp_path / name) for name in ("first", "second")]


@pytest.fixture
def sequences(runs, tmp_path):
    """A run on sequences, as far as it is told by its configuration."""
    folder = shutil.copytree(runs[0], tmp_path / "sequences")
    model = dict(dim=8, dim_input=3, max_seq_len=7)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(model=model, kind="sequences")))
    return folder


def texts(rows):
    return {row.name: row.texts for row in rows}


def best(comparison):
    return {row.name: row.best for row in comparison.numbers if row.best is not None}


def test_settings_have_the_names_of_options(trained):
    settings = settings_of(RunRecord(trained).config)
    expected = {"noise draws": "1", "dim": "16", "hold out": "0.5", "flip": "no", "epochs": "–"}
    expected |= {"weight decay": "0.02", "sample every": "2", "max pixels": "500,000,000"}
    assert expected.items() <= settings.items()
    assert list(settings)[:4] == ["kind", "source", "head", "order"]


def test_only_settings_that_differ_are_told(runs):
    comparison = compare_runs(runs)
    assert comparison.names == ["first", "second"]
    assert (comparison.settings, comparison.notes) == ([], [])
    change(runs[1], classes=list("abcd"), trainer=dict(learning_rate=0.5), compile=True)
    assert texts(compare_runs(runs).settings) == {
        "learning rate": ["0.002", "0.5"],
        "classes": ["–", "a, …, d (4)"],
        "compile": ["no", "yes"],
    }


def test_a_default_that_is_written_out_is_no_difference(runs):
    own = dict(RunRecord(runs[1]).config["model"])
    chosen = own["model"]
    change(runs[1], model=dict(model=chosen | dict(dim_head=64, num_cond_tokens=4)))
    assert compare_runs(runs).settings == []
    change(runs[1], model=dict(model=chosen | dict(dim_head=32)))
    assert texts(compare_runs(runs).settings) == {"dim head": ["64", "32"]}
    # a run that has no checkpoint yet tells no defaults
    shutil.rmtree(runs[0] / "checkpoints")
    assert texts(compare_runs(runs).settings) == {"dim head": ["–", "32"]}


def test_settings_that_other_heads_have_are_left_out(runs):
    first, second = (RunRecord(run) for run in runs)
    for file in (runs[1] / "config.json", second.checkpoints[-1].folder / "config.json"):
        found = json.loads(file.read_text())
        model = found["model"] if "head" in found else found
        del model["model"]["flow_kwargs"]
        model["model"]["energy_kwargs"] = dict(num_samples=7)
        file.write_text(json.dumps(found | dict(head="energy") if "head" in found else found))
    assert "solver" in first.arguments["model"]["flow_kwargs"]
    assert texts(compare_runs(runs).settings) == {"head": ["flow", "energy"]}
    third = shutil.copytree(runs[1], runs[1].with_name("third"))
    other = RunRecord(third).config["model"]["model"] | dict(energy_kwargs=dict(num_samples=8))
    change(third, model=dict(model=other))
    settings = texts(compare_runs([runs[1], third]).settings)
    assert settings == {"samples per token": ["7", "8"]}


def test_numbers_are_side_by_side(runs):
    write_report(runs[0], 3.0, 0.2)
    write_report(runs[1], 2.0, 0.3)
    progress = dict(items_per_second=1234.5, state="stopped", step=3, loss=0.25)
    change(runs[1], "progress", **progress)
    comparison = compare_runs(runs)
    numbers = texts(comparison.numbers)
    assert numbers["parameters"][0] == f"{RunRecord(runs[0]).num_parameters:,}"
    assert numbers["steps"] == ["4 / 4", "3 / 4"]
    assert numbers["state"] == ["ended", "stopped"]
    assert numbers["training loss"][1] == "0.25"
    assert numbers["bits per dimension"] == ["3", "2"]
    assert numbers["sliced Wasserstein distance"] == ["0.2", "0.3"]
    assert numbers["samples measured"] == ["10", "10"]
    assert numbers["speed"][1] == "1,234 images/s"
    assert "Fréchet distance" not in numbers
    assert best(comparison) == {
        "training loss": 1,
        "bits per dimension": 1,
        "sliced Wasserstein distance": 0,
    }


def test_what_does_not_compare_is_said_and_has_no_best(runs):
    change(runs[1], order="masked")
    change(runs[1], "progress", loss=0.01)
    write_report(runs[0], 3.0, 0.2)
    write_report(runs[1], 2.0, 0.3, count=11)
    comparison = compare_runs(runs)
    assert best(comparison) == {}
    assert comparison.notes == [
        "Losses do not compare: the runs differ in order.",
        "Measurements do not compare: they are of other data or numbers of samples.",
    ]


def test_runs_of_different_kinds_compare_in_what_both_have(runs, sequences):
    settings = texts(compare_runs([runs[0], sequences]).settings)
    assert settings["kind"] == ["images", "sequences"]
    assert settings["dim"] == ["16", "8"]
    assert "image size" not in settings
    assert "longest sequence" not in settings


def test_samples_are_of_one_step_where_all_have_it(runs):
    first, second = runs
    assert [step for step, _ in compare_runs(runs).grids] == [4, 4]
    (second / "samples" / "results.4.png").unlink()
    assert compare_runs(runs).grids == [
        (2, folder / "samples" / "results.2.png") for folder in runs
    ]
    with pytest.raises(ValueError, match="step 4 has no samples of second, only the steps 2"):
        compare_runs(runs, step=4)
    assert [step for step, _ in compare_runs(runs, step=2).grids] == [2, 2]
    (first / "samples" / "results.2.png").unlink()
    assert [step for step, _ in compare_runs(runs).grids] == [4, 2]
    shutil.rmtree(second / "samples")
    assert compare_runs(runs).grids[1] is None


def test_runs_of_one_name_are_told_by_their_paths(trained, runs, tmp_path):
    other = shutil.copytree(trained, tmp_path / "more" / "first")
    assert compare_runs([runs[0], other]).names == [str(runs[0]), str(other)]


def test_a_folder_that_is_no_run_is_named(trained, tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        compare_runs([trained, tmp_path])


class Links(HTMLParser):
    """Addresses that a page refers to, and the names of its elements."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.elements = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]


def test_a_page_needs_no_other_file(runs):
    page = page_of(compare_runs(runs))
    links = Links(page)
    assert len(links.addresses) == 2
    for address, run in zip(links.addresses, runs, strict=True):
        head, data = address.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (run / "samples" / "results.4.png").read_bytes()
    assert "script" not in links.elements
    assert not re.search(r"url\(|@import|https?:", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert links.elements.count("svg") == 1


def test_a_page_escapes_names(trained, tmp_path):
    odd = shutil.copytree(trained, tmp_path / "<script>&")
    page = page_of(compare_runs([trained, odd]))
    assert "<script>" not in page
    assert "&lt;script&gt;&amp;" in page


@pytest.mark.parametrize("part", ["samples", "logs", "checkpoints"])
def test_runs_without_a_part_have_a_page_and_a_picture(runs, part, tmp_path):
    for run in runs:
        shutil.rmtree(run / part)
    comparison = compare_runs(runs)
    assert "first" in page_of(comparison)
    write_picture(comparison, tmp_path / "picture.png")
    Image.open(tmp_path / "picture.png").verify()


def test_a_picture_is_as_large_as_what_it_shows(runs, tmp_path):
    def size():
        write_picture(compare_runs(runs), tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as picture:
            return picture.size

    width, height = size()
    change(runs[1], seed=1, compile=True)
    assert size()[0] == width
    assert size()[1] > height
