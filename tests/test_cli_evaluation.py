import json

import pytest
import torch
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer, evaluation, tuning
from autoregressive_diffusion_pytorch.generation import GenerationSettings
from autoregressive_diffusion_pytorch.heads import RectifiedFlow
from autoregressive_diffusion_pytorch.modes import best_precision


@pytest.fixture
def folder(tmp_path):
    """Ten images of each of two classes."""
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, 255 - 10 * i, 9)).save(path)
    return tmp_path / "images"


def report(path):
    return json.loads((path / "evaluation" / "report.2.json").read_text())


def test_a_report_on_the_images_held_out(call, tmp_path, mean_network):
    succeeded(call("train", *TINY, "--hold-out", 0.008))
    run = tmp_path / "runs/digits"
    result = succeeded(call("evaluate", "runs/digits", "--features", mean_network, "--count", 11, "--steps", 2, "--batch-size", 8))
    found = report(run)
    assert found["source"] == "held out"
    assert found["images"] == 15
    assert found["checkpoint"] == "checkpoint.2"
    assert 0 < found["bits_per_dim"]["standard_error"] < found["bits_per_dim"]["mean"] < 20
    assert (found["generated"]["count"], found["generated"]["evaluations"]) == (11, 2)
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"bits per dimension   {found['bits_per_dim']['mean']:.4f} ± ")
    assert f"frechet distance     {found['generated']['frechet_distance']:.4f}" in lines
    assert lines[-1] == "runs/digits/evaluation/report.2.json"
    assert found["bits_per_dim"]["divergence"] == "exact"
    # the same again, beside the earlier one
    result = succeeded(call("evaluate", "runs/digits", "--features", mean_network, "--count", 11, "--steps", 2, "--batch-size", 8))
    assert result.stdout.splitlines()[-1] == "runs/digits/evaluation/report.2-2.json"
    assert json.loads((run / "evaluation/report.2-2.json").read_text()) == report(run) == found


def test_the_images_held_out_are_those_of_the_validation_loss(call, folder, monkeypatch):
    held_out, seen = [], []

    class Recorder(ImageTrainer):
        def __init__(self, *args, validation_dataset, **kwargs):
            held_out.extend(validation_dataset)
            super().__init__(*args, validation_dataset=validation_dataset, **kwargs)

    def fake(model, dataset, **kwargs):
        seen.extend(dataset)
        return dict(images=len(dataset), bits_per_dim=dict(mean=1.0, standard_error=0.1))

    monkeypatch.setattr("autoregressive_diffusion_pytorch.image_trainer.ImageTrainer", Recorder)
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run", "--hold-out", 0.4))
    monkeypatch.setattr(evaluation, "evaluate", fake)
    succeeded(call("evaluate", "run", "--features", "none"))
    assert len(seen) == 8
    assert torch.equal(torch.stack(seen), torch.stack(held_out))
    # other images than when the run was started
    (folder / "a" / "0.png").unlink()
    assert "holds 19 images, 20 when the run was started" in failed(call("evaluate", "run", "--features", "none"))


def test_images_are_not_mirrored(call, folder, monkeypatch):
    Image.effect_noise((8, 8), 100).convert("RGB").save(folder / "a" / "0.png")
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run", "--flip"))
    seen = []

    def fake(model, dataset, **kwargs):
        seen.extend(dataset[0] for _ in range(20))
        return dict(images=len(dataset), bits_per_dim=dict(mean=1.0, standard_error=0.1))

    monkeypatch.setattr(evaluation, "evaluate", fake)
    succeeded(call("evaluate", "run", folder, "--features", "none"))
    assert len(torch.stack(seen).flatten(1).unique(dim=0)) == 1


def test_curves_are_plotted(call, tmp_path, folder, mean_network, monkeypatch):
    monkeypatch.setattr("autoregressive_diffusion_pytorch.cli_evaluation.CURVE", (2, 4))
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    arguments = ("--features", mean_network, "--curve", "--output", "out/report.json")
    result = succeeded(call("evaluate", "run", folder, *arguments))
    assert result.stdout.splitlines()[-2:] == ["out/report.json", "out/report.png"]
    curve = json.loads((tmp_path / "out/report.json").read_text())["curve"]
    assert [point["evaluations"] for point in curve] == [2, 4]
    assert Image.open(tmp_path / "out/report.png").width > 500


def test_classes_go_by_their_names(call, folder, monkeypatch, tmp_path):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--labels", "--run", "run"))
    seen, reds = [], []

    def bits_per_dim(model, images, labels, **kwargs):
        seen.append(labels.tolist())
        reds.extend((images[:, 0, 0, 0] * 255).round().int().tolist())
        return torch.arange(len(images)).float()

    monkeypatch.setattr(ImageAutoregressiveFlow, "bits_per_dim", bits_per_dim)
    # only the second class of the run
    only_b = tmp_path / "only_b"
    only_b.mkdir()
    (folder / "b").rename(only_b / "b")
    succeeded(call("evaluate", "run", only_b, "--features", "none", "--count", 0, "--images", 4, "--batch-size", 3))
    assert seen == [[1, 1, 1], [1]]
    # evenly spread over 1, 11, 13, 15, 17, 19, 3, 5, 7, 9
    assert reds == [10 * number for number in (1, 13, 19, 5)]
    assert report(tmp_path / "run")["images"] == 4
    (only_b / "b").rename(only_b / "c")
    assert "has classes that the run does not know: c" in failed(call("evaluate", "run", only_b, "--features", "none"))


def test_options_reach_the_evaluation(call, folder, monkeypatch):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    seen = {}

    def fake(model, dataset, **kwargs):
        seen.update(kwargs)
        return dict(images=2, bits_per_dim=dict(mean=1.0, standard_error=0.1))

    monkeypatch.setattr(evaluation, "evaluate", fake)
    succeeded(call("evaluate", "run", folder, "--features", "none"))
    assert seen["features"] is None
    assert seen["evaluations"] == ()
    # the model's own, for the report
    always = dict(guidance_schedule="constant", guidance_interval=None)
    own = always | dict(solver="dpmpp_2m", num_steps=RectifiedFlow.NUM_SAMPLE_STEPS["dpmpp_2m"])
    assert seen["sample_kwargs"] == dict(guidance_scale=1.0, context_guidance=1.0, temperature=1.0) | own
    GenerationSettings(num_steps=3, temperature=0.9, context_guidance=1.5).save("run")
    succeeded(call("evaluate", "run", folder, "--features", "none", "--context-guidance", 2))
    own = always | dict(solver="dpmpp_2m", num_steps=3)
    assert seen["sample_kwargs"] == dict(guidance_scale=1.0, context_guidance=2.0, temperature=0.9) | own
    succeeded(call("evaluate", "run", folder, "--features", "none", "--solver", "euler"))
    assert seen["sample_kwargs"]["num_steps"] == RectifiedFlow.NUM_SAMPLE_STEPS["euler"]
    assert seen["solver_kwargs"] == dict(divergence="auto", num_probes=1, rtol=1e-3, atol=1e-3)
    options = dict(count=5, seed=3, batch_size=7, temperature=0.5, guidance=2.0, context_guidance=1.5, solver="heun", steps=4)
    options |= dict(divergence="hutchinson", probes=2, tolerance=0.1)
    given = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    succeeded(call("evaluate", "run", folder, "--features", "none", *given))
    assert (seen["count"], seen["seed"], seen["batch_size"]) == (5, 3, 7)
    own = dict(guidance_scale=2.0, context_guidance=1.5, temperature=0.5, solver="heun", num_steps=4)
    assert seen["sample_kwargs"] == always | own
    assert seen["solver_kwargs"] == dict(divergence="hutchinson", num_probes=2, rtol=0.1, atol=0.1)


def test_a_map_of_surprise(call, folder, monkeypatch):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--labels", "--run", "run"))
    file, seen = folder / "a/0.png", []
    real = evaluation.surprise
    monkeypatch.setattr(
        evaluation, "surprise", lambda *args, **kw: seen.append(args) or real(*args, solver="euler", num_steps=1, **kw)
    )
    result = succeeded(call("evaluate", "run", "--surprise", file, "--label", "b"))
    assert result.stdout == "run/evaluation/surprise.0.2.png\n"
    assert Image.open("run/evaluation/surprise.0.2.png").width > 500
    assert seen[0][1].shape == (3, 8, 8)
    assert seen[0][2] == 1
    assert "the run has labels: name one of a, b" in failed(call("evaluate", "run", "--surprise", file))
    assert "'c' is none of a, b" in failed(call("evaluate", "run", "--surprise", file, "--label", "c"))
    message = failed(call("evaluate", "run", folder, "--surprise", file, "--batch-size", 3))
    assert "--surprise has no use for SOURCE, --batch-size" in message
    # beside the earlier one
    assert "run/evaluation/surprise.0.2-2.png" in succeeded(call("evaluate", "run", "--surprise", file, "--label", "b")).stdout


def test_what_cannot_be_evaluated_is_told_in_a_line(call, folder, mean_network, tmp_path, monkeypatch):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    assert "the run held out no images: name a folder" in failed(call("evaluate", "run"))
    assert "nowhere does not exist" in failed(call("evaluate", "run", "nowhere", "--features", "none"))
    assert "must end in .json" in failed(call("evaluate", "run", folder, "--output", "report.txt"))
    assert "--label is for --surprise" in failed(call("evaluate", "run", folder, "--label", "a"))
    assert "the run has no labels" in failed(call("evaluate", "run", "--surprise", folder / "a/0.png", "--label", "a"))
    assert "count must be of at least 10 images for distances, got 3" in failed(
        call("evaluate", "run", folder, "--features", mean_network, "--count", 3, "--steps", 1)
    )
    (tmp_path / "other.pt2").write_bytes(b"")
    assert "other.pt2 holds no network" in failed(call("evaluate", "run", folder, "--features", "other.pt2"))
    assert "images must be of shape" in failed(call("evaluate", "run", "digits", "--features", "none"))
    images = torch.rand(2, 3, 8, 8)
    torch.export.save(torch.export.export(torch.nn.Flatten(), (images,)), tmp_path / "two.pt2")
    assert "two.pt2 does not take (3 3 8 8) images" in failed(call("evaluate", "run", folder, "--features", "two.pt2"))
    # before any work
    monkeypatch.setattr(evaluation, "bits_per_dim", None)
    for options, message in (
        (("--solver", "rk5"), "solver must be one of"),
        (("--guidance", 2), "guidance_scale other than 1 needs a model"),
        (("--output", "images/a/0.png/report.json"), "0.png"),
    ):
        assert message in failed(call("evaluate", "run", folder, "--features", mean_network, *options))
    assert not list(tmp_path.rglob("report*"))


def test_inception_without_its_weights(call, folder, monkeypatch):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))

    def fail(self):
        raise OSError("no network")

    monkeypatch.setattr(evaluation.Inception, "__init__", fail)
    message = failed(call("evaluate", "run", folder))
    assert "the weights of Inception cannot be downloaded: no network" in message
    assert "--features takes another network, or none" in message


@pytest.fixture
def few_settings(monkeypatch):
    """The values that are tried: few."""
    axes = dict(context_guidance=(1.0, 2.0), guidance_scale=(1.0, 2.0), temperature=(0.5, 1.0), num_steps=(1, 8))
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
        return tuning.Tuning(settings, "sliced_wasserstein", rows, rows[0], dict(sliced_wasserstein=1.0))

    monkeypatch.setattr(tuning, "tune", fake)
    return settings, seen


def test_tuning_writes_settings_and_a_report(call, tmp_path, few_settings):
    succeeded(call("train", *TINY, "--labels", "--hold-out", 0.015))
    run = tmp_path / "runs/digits"
    result = succeeded(call("tune", "runs/digits", "--count", 10))
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *("context", "guidance", "guidance", "scale", "temperature", "num", "steps", "sliced", "wasserstein")
    ]
    found = json.loads((run / "evaluation/tune.2.json").read_text())
    assert len(lines) == 1 + len(found["rows"]) + 1 + 4
    floor, report, picture, best, written = lines[-5:]
    assert floor.split() == ["floor", f"{found['floor']['sliced_wasserstein']:.4g}"]
    assert (report, picture) == ("runs/digits/evaluation/tune.2.json", "runs/digits/evaluation/tune.2.png")
    assert best.startswith("best: ")
    assert written == "runs/digits/generation.json"
    assert (found["source"], found["images"], found["checkpoint"], found["seed"]) == ("held out", 27, "checkpoint.2", 0)
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


def test_what_was_tuned_is_drawn_completed_evaluated_and_exported(call, tmp_path, found, monkeypatch):
    settings, _ = found
    succeeded(call("train", *TINY, "--hold-out", 0.015))
    plain, asked = [], ("--steps", 2, "--temperature", 0.5, "--context-guidance", 2)
    for options in ((), asked):
        succeeded(call("sample", "runs/digits", "--count", 4, "--output", "grid.png", *options))
        plain.append(Image.open("grid.png").tobytes())
    assert plain[0] != plain[1]
    assert "best: num steps 2, temperature 0.5, context guidance 2.0" in succeeded(call("tune", "runs/digits")).stdout
    succeeded(call("sample", "runs/digits", "--count", 4, "--output", "grid.png"))
    assert Image.open("grid.png").tobytes() == plain[1]
    learned = ("--steps", 8, "--temperature", 1, "--context-guidance", 1)
    succeeded(call("sample", "runs/digits", "--count", 4, "--output", "grid.png", *learned))
    assert Image.open("grid.png").tobytes() == plain[0]

    pixels = []
    for options in ((), asked):
        succeeded(call("complete", "runs/digits", "grid.png", "--keep-rows", 2, "--output", "completed.png", *options))
        pixels.append(Image.open("completed.png").tobytes())
    assert pixels[0] == pixels[1]
    succeeded(call("evaluate", "runs/digits", "--features", "none", "--count", 10))
    sampling = json.loads((tmp_path / "runs/digits/evaluation/report.2.json").read_text())["sampling"]
    assert (sampling["num_steps"], sampling["temperature"], sampling["context_guidance"]) == (2, 0.5, 2.0)
    succeeded(call("export", "runs/digits", "model"))
    assert ImageAutoregressiveFlow.from_pretrained("model").generation == settings
    # a later training draws its grids as it was learned: its checkpoints hold no settings
    succeeded(call("resume", "runs/digits", "--steps", 3))
    checkpoint = ImageAutoregressiveFlow.from_pretrained("runs/digits/checkpoints/checkpoint.3")
    assert checkpoint.generation == GenerationSettings()
    (tmp_path / "runs/digits/generation.json").write_text('{"steps": 3}')
    for command in (("sample",), ("export",), ("evaluate",), ("tune",)):
        arguments = ("elsewhere",) if command == ("export",) else ()
        assert "digits/generation.json holds no generation settings" in failed(call(*command, "runs/digits", *arguments))


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
    assert result.stderr.strip().endswith("no image was held out: compared with those that the run was trained on")
    assert json.loads((tmp_path / "run/evaluation/tune.2.json").read_text())["source"] == str(folder)
    assert len(seen["dataset"]) == 20
    expected = dict(count=None, features=None, batch_size=250, seed=0, precision=best_precision())
    assert expected.items() <= seen.items()
    options = ("--images", 10, "--count", 30, "--batch-size", 7, "--seed", 3)
    assert "held out" not in succeeded(call("tune", "run", folder, *options)).stderr
    assert (len(seen["dataset"]), seen["count"], seen["batch_size"], seen["seed"]) == (10, 30, 7, 3)


def test_what_cannot_be_tuned_is_told_in_a_line(call, folder, tmp_path):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    assert "half of the dataset must be of at least 10 images for distances, got 5" in failed(
        call("tune", "run", folder, "--images", 10)
    )
    assert "count must be of at least 10 images for distances, got 3" in failed(call("tune", "run", folder, "--count", 3))
    assert "nowhere does not exist" in failed(call("tune", "run", "nowhere"))
    assert "images must be of shape" in failed(call("tune", "run", "digits"))
    (tmp_path / "other.pt2").write_bytes(b"")
    assert "other.pt2 holds no network" in failed(call("tune", "run", folder, "--features", "other.pt2"))
    assert not list(tmp_path.rglob("tune*"))
    assert not list((tmp_path / "run").glob("generation*"))


def test_a_network_decides_on_the_settings(call, folder, mean_network, few_settings, tmp_path):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    result = succeeded(call("tune", "run", folder, "--count", 10, "--features", mean_network))
    assert "frechet distance" in result.stdout
    assert json.loads((tmp_path / "run/evaluation/tune.2.json").read_text())["metric"] == "frechet_distance"
