import json

import pytest
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.evaluation import plots, tuning
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings
from autoregressive_diffusion_pytorch.utils.modes import best_precision


@pytest.fixture
def few_settings(monkeypatch):
    """The values that are tried: few."""
    axes = dict(
        context_guidance=(1.0, 2.0),
        guidance_scale=(1.0, 2.0),
        temperature=(0.5, 1.0),
        num_steps=(1, 8),
    )
    monkeypatch.setattr(tuning, "AXES", axes)
    return axes


@pytest.fixture
def found(monkeypatch):
    """What a tuning finds, and the arguments it is called with."""
    settings = GenerationSettings(num_steps=2, temperature=0.5, context_guidance=2.0)
    rows = [dict(context_guidance=2.0, temperature=0.5, num_steps=2, sliced_wasserstein=3.0)]
    seen = {}

    def fake(model, dataset, **kwargs):
        seen.update(kwargs, dataset=dataset)
        return tuning.Tuning(
            settings, "sliced_wasserstein", rows, rows[0], dict(sliced_wasserstein=1.0)
        )

    monkeypatch.setattr(tuning, "tune", fake)
    return settings, seen


def test_tuning_writes_settings_and_a_report(call, tmp_path, few_settings):
    succeeded(call("train", *TINY, "--labels", "--hold-out", 0.015))
    run = tmp_path / "runs/digits"
    result = succeeded(call("tune", "runs/digits", "--count", 10))
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *(
            "context",
            "guidance",
            "guidance",
            "scale",
            "temperature",
            "num",
            "steps",
            "sliced",
            "wasserstein",
        )
    ]
    found = json.loads((run / "evaluation/tune.2.json").read_text())
    assert len(lines) == 1 + len(found["rows"]) + 1 + 4
    floor, report, picture, best, written = lines[-5:]
    assert floor.split() == ["floor", f"{found['floor']['sliced_wasserstein']:.4g}"]
    assert (report, picture) == (
        "runs/digits/evaluation/tune.2.json",
        "runs/digits/evaluation/tune.2.png",
    )
    assert best.startswith("best: ")
    assert written == "runs/digits/generation.json"
    assert (found["source"], found["images"], found["checkpoint"], found["seed"]) == (
        "held out",
        27,
        "checkpoint.2",
        0,
    )
    assert Image.open(run / "evaluation/tune.2.png").width > 100
    tried = {name: {row[name] for row in found["rows"]} for name in few_settings}
    assert tried == {name: set(values) for name, values in few_settings.items()}
    settings = GenerationSettings.load(run)
    assert settings == GenerationSettings(**found["settings"])
    assert found["chosen"] in found["rows"]
    own = dict(num_steps=8)  # of the head: no setting
    for name in few_settings:
        value = getattr(settings, name)
        assert found["chosen"][name] == (own[name] if value is None else value)
    # the same again, beside the earlier one
    succeeded(call("tune", "runs/digits", "--count", 10))
    assert json.loads((run / "evaluation/tune.2-2.json").read_text()) == found


def test_what_was_tuned_is_drawn_completed_evaluated_and_exported(
    call, tmp_path, found, monkeypatch
):
    settings, _ = found
    succeeded(call("train", *TINY, "--hold-out", 0.015))
    plain, asked = [], ("--steps", 2, "--temperature", 0.5, "--context-guidance", 2)
    for options in ((), asked):
        succeeded(call("sample", "runs/digits", "--count", 4, "--output", "grid.png", *options))
        plain.append(Image.open("grid.png").tobytes())
    assert plain[0] != plain[1]
    assert (
        "best: num steps 2, temperature 0.5, context guidance 2.0"
        in succeeded(call("tune", "runs/digits")).stdout
    )
    succeeded(call("sample", "runs/digits", "--count", 4, "--output", "grid.png"))
    assert Image.open("grid.png").tobytes() == plain[1]
    learned = ("--steps", 8, "--temperature", 1, "--context-guidance", 1)
    succeeded(call("sample", "runs/digits", "--count", 4, "--output", "grid.png", *learned))
    assert Image.open("grid.png").tobytes() == plain[0]

    pixels = []
    for options in ((), asked):
        succeeded(
            call(
                "complete",
                "runs/digits",
                "grid.png",
                "--keep-rows",
                2,
                "--output",
                "completed.png",
                *options,
            )
        )
        pixels.append(Image.open("completed.png").tobytes())
    assert pixels[0] == pixels[1]
    succeeded(call("evaluate", "runs/digits", "--features", "none", "--count", 10))
    sampling = json.loads((tmp_path / "runs/digits/evaluation/report.2.json").read_text())[
        "sampling"
    ]
    assert (sampling["num_steps"], sampling["temperature"], sampling["context_guidance"]) == (
        2,
        0.5,
        2.0,
    )
    succeeded(call("export", "runs/digits", "model"))
    assert ImageAutoregressiveFlow.from_pretrained("model").generation == settings
    # a later training draws its grids as it was learned: its checkpoints hold no settings
    succeeded(call("resume", "runs/digits", "--steps", 3))
    checkpoint = ImageAutoregressiveFlow.from_pretrained("runs/digits/checkpoints/checkpoint.3")
    assert checkpoint.generation == GenerationSettings()
    (tmp_path / "runs/digits/generation.json").write_text('{"steps": 3}')
    for command in (("sample",), ("export",), ("evaluate",), ("tune",)):
        arguments = ("elsewhere",) if command == ("export",) else ()
        assert "digits/generation.json holds no generation settings" in failed(
            call(*command, "runs/digits", *arguments)
        )


@pytest.mark.parametrize("error", [OSError("no space"), ModuleNotFoundError("no matplotlib")])
def test_a_picture_that_cannot_be_drawn_costs_no_settings(
    call, tmp_path, found, monkeypatch, error
):
    def fail(*args):
        raise error

    monkeypatch.setattr(plots, "plot_tuning", fail)
    succeeded(call("train", *TINY, "--hold-out", 0.015))
    assert str(error) in succeeded(call("tune", "runs/digits")).stderr
    assert GenerationSettings.load(tmp_path / "runs/digits") == found[0]


def test_a_dry_run_writes_no_settings(call, tmp_path, found):
    succeeded(call("train", *TINY, "--hold-out", 0.015))
    result = succeeded(call("tune", "runs/digits", "--dry-run"))
    assert result.stdout.splitlines()[-1].startswith("best: num steps 2")
    assert not (tmp_path / "runs/digits/generation.json").exists()
    assert (tmp_path / "runs/digits/evaluation/tune.2.json").exists()


def test_images_to_tune_by(call, folder, found, tmp_path):
    _, seen = found
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    result = succeeded(call("tune", "run"))
    assert "compared with those that the run was trained on" in result.stderr
    assert json.loads((tmp_path / "run/evaluation/tune.2.json").read_text())["source"] == str(
        folder
    )
    assert len(seen["dataset"]) == 20
    expected = dict(count=None, features=None, batch_size=250, seed=0, precision=best_precision())
    assert expected.items() <= seen.items()
    options = ("--images", 10, "--count", 30, "--batch-size", 7, "--seed", 3)
    assert "held out" not in succeeded(call("tune", "run", folder, *options)).stderr
    assert (len(seen["dataset"]), seen["count"], seen["batch_size"], seen["seed"]) == (10, 30, 7, 3)


def test_what_cannot_be_tuned_is_refused_in_one_line(call, folder, tmp_path):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    assert "half of the dataset must be of at least 10 images for distances, got 5" in failed(
        call("tune", "run", folder, "--images", 10)
    )
    assert "count must be of at least 10 images for distances, got 3" in failed(
        call("tune", "run", folder, "--count", 3)
    )
    assert "nowhere does not exist" in failed(call("tune", "run", "nowhere"))
    assert "images must be of shape" in failed(call("tune", "run", "digits"))
    (tmp_path / "other.pt2").write_bytes(b"")
    assert "other.pt2 holds no network" in failed(
        call("tune", "run", folder, "--features", "other.pt2")
    )
    assert not list(tmp_path.rglob("tune*"))
    assert not list((tmp_path / "run").glob("generation*"))


def test_a_network_decides_on_the_settings(call, folder, mean_network, few_settings, tmp_path):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    result = succeeded(call("tune", "run", folder, "--count", 10, "--features", mean_network))
    assert "frechet distance" in result.stdout
    assert (
        json.loads((tmp_path / "run/evaluation/tune.2.json").read_text())["metric"]
        == "frechet_distance"
    )
