import json
from importlib import import_module

import torch
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer, RectifiedFlow
from autoregressive_diffusion_pytorch.evaluation import metrics
from autoregressive_diffusion_pytorch.evaluation import report as reports
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings

BITS = dict(mean=1.0, standard_error=0.1, density="exact, in raster order")


def report(path):
    return json.loads((path / "evaluation" / "report.2.json").read_text())


def test_a_report_on_held_out_images(call, tmp_path, mean_network):
    succeeded(call("train", *TINY, "--hold-out", 0.008))
    run = tmp_path / "runs/digits"
    result = succeeded(
        call(
            "evaluate",
            "runs/digits",
            "--features",
            mean_network,
            "--count",
            11,
            "--steps",
            2,
            "--batch-size",
            8,
        )
    )
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
    result = succeeded(
        call(
            "evaluate",
            "runs/digits",
            "--features",
            mean_network,
            "--count",
            11,
            "--steps",
            2,
            "--batch-size",
            8,
        )
    )
    assert result.stdout.splitlines()[-1] == "runs/digits/evaluation/report.2-2.json"
    assert json.loads((run / "evaluation/report.2-2.json").read_text()) == report(run) == found


def test_held_out_images_are_those_of_the_validation_loss(call, folder, monkeypatch):
    held_out, seen = [], []

    class Recorder(ImageTrainer):
        def __init__(self, *args, validation_dataset, **kwargs):
            held_out.extend(validation_dataset)
            super().__init__(*args, validation_dataset=validation_dataset, **kwargs)

    def fake(model, dataset, **kwargs):
        seen.extend(dataset)
        return dict(images=len(dataset), bits_per_dim=BITS)

    monkeypatch.setattr(
        "autoregressive_diffusion_pytorch.training.image_trainer.ImageTrainer", Recorder
    )
    succeeded(
        call(
            "train",
            folder,
            *TINY,
            "--image-size",
            8,
            "--patch-size",
            4,
            "--run",
            "run",
            "--hold-out",
            0.4,
        )
    )
    monkeypatch.setattr(reports, "evaluate", fake)
    succeeded(call("evaluate", "run", "--features", "none"))
    assert len(seen) == 8
    assert torch.equal(torch.stack(seen), torch.stack(held_out))
    # other images than when the run was started
    (folder / "a" / "0.png").unlink()
    assert "holds 19 images, 20 when the run was started" in failed(
        call("evaluate", "run", "--features", "none")
    )


def test_images_are_not_mirrored(call, folder, monkeypatch):
    Image.effect_noise((8, 8), 100).convert("RGB").save(folder / "a" / "0.png")
    succeeded(
        call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run", "--flip")
    )
    seen = []

    def fake(model, dataset, **kwargs):
        seen.extend(dataset[0] for _ in range(20))
        return dict(images=len(dataset), bits_per_dim=BITS)

    monkeypatch.setattr(reports, "evaluate", fake)
    succeeded(call("evaluate", "run", folder, "--features", "none"))
    assert len(torch.stack(seen).flatten(1).unique(dim=0)) == 1


def test_curves_are_plotted(call, tmp_path, folder, mean_network, monkeypatch):
    # cli.evaluate is the command
    module = import_module("autoregressive_diffusion_pytorch.cli.evaluate")
    monkeypatch.setattr(module, "CURVE", (2, 4))
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    arguments = ("--features", mean_network, "--curve", "--output", "out/report.json")
    result = succeeded(call("evaluate", "run", folder, *arguments))
    assert result.stdout.splitlines()[-2:] == ["out/report.json", "out/report.png"]
    curve = json.loads((tmp_path / "out/report.json").read_text())["curve"]
    assert [point["evaluations"] for point in curve] == [2, 4]
    assert Image.open(tmp_path / "out/report.png").width > 500


def test_classes_go_by_their_names(call, folder, monkeypatch, tmp_path):
    succeeded(
        call(
            "train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--labels", "--run", "run"
        )
    )
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
    succeeded(
        call(
            "evaluate",
            "run",
            only_b,
            "--features",
            "none",
            "--count",
            0,
            "--images",
            4,
            "--batch-size",
            3,
        )
    )
    assert seen == [[1, 1, 1], [1]]
    # evenly spread over 1, 11, 13, 15, 17, 19, 3, 5, 7, 9
    assert reds == [10 * number for number in (1, 13, 19, 5)]
    assert report(tmp_path / "run")["images"] == 4
    (only_b / "b").rename(only_b / "c")
    assert "has classes that the run does not know: c" in failed(
        call("evaluate", "run", only_b, "--features", "none")
    )


def test_options_reach_the_evaluation(call, folder, monkeypatch):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    seen = {}

    def fake(model, dataset, **kwargs):
        seen.update(kwargs)
        return dict(images=2, bits_per_dim=BITS)

    monkeypatch.setattr(reports, "evaluate", fake)
    succeeded(call("evaluate", "run", folder, "--features", "none"))
    assert seen["features"] is None
    assert seen["evaluations"] == ()
    # the model's own, for the report
    always = dict(guidance_schedule="constant", guidance_interval=None)
    always |= dict(guidance_target="tokens", num_iterations=None)
    own = always | dict(solver="dpmpp_2m", num_steps=RectifiedFlow.NUM_SAMPLE_STEPS["dpmpp_2m"])
    assert (
        seen["sample_kwargs"]
        == dict(guidance_scale=1.0, context_guidance=1.0, temperature=1.0) | own
    )
    GenerationSettings(num_steps=3, temperature=0.9, context_guidance=1.5).save("run")
    succeeded(call("evaluate", "run", folder, "--features", "none", "--context-guidance", 2))
    own = always | dict(solver="dpmpp_2m", num_steps=3)
    assert (
        seen["sample_kwargs"]
        == dict(guidance_scale=1.0, context_guidance=2.0, temperature=0.9) | own
    )
    succeeded(call("evaluate", "run", folder, "--features", "none", "--solver", "euler"))
    assert seen["sample_kwargs"]["num_steps"] == RectifiedFlow.NUM_SAMPLE_STEPS["euler"]
    assert seen["solver_kwargs"] == {}  # the defaults
    options = dict(
        count=5,
        seed=3,
        batch_size=7,
        temperature=0.5,
        guidance=2.0,
        context_guidance=1.5,
        solver="heun",
        steps=4,
    )
    options |= dict(divergence="hutchinson", probes=2, tolerance=0.1)
    given = [
        str(part)
        for name, value in options.items()
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    succeeded(call("evaluate", "run", folder, "--features", "none", *given))
    assert (seen["count"], seen["seed"], seen["batch_size"]) == (5, 3, 7)
    own = dict(
        guidance_scale=2.0, context_guidance=1.5, temperature=0.5, solver="heun", num_steps=4
    )
    assert seen["sample_kwargs"] == always | own
    assert seen["solver_kwargs"] == dict(divergence="hutchinson", num_probes=2, rtol=0.1, atol=0.1)


def test_a_map_of_surprise(call, folder, monkeypatch):
    succeeded(
        call(
            "train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--labels", "--run", "run"
        )
    )
    file, seen = folder / "a/0.png", []
    real = reports.surprise
    monkeypatch.setattr(
        reports,
        "surprise",
        lambda *args, **kw: seen.append(args) or real(*args, solver="euler", num_steps=1, **kw),
    )
    result = succeeded(call("evaluate", "run", "--surprise", file, "--label", "b"))
    assert result.stdout == "run/evaluation/surprise.0.2.png\n"
    assert Image.open("run/evaluation/surprise.0.2.png").width > 500
    assert seen[0][1].shape == (3, 8, 8)
    assert seen[0][2] == 1
    assert "the run has labels: name one of a, b" in failed(
        call("evaluate", "run", "--surprise", file)
    )
    assert "'c' is none of a, b" in failed(
        call("evaluate", "run", "--surprise", file, "--label", "c")
    )
    message = failed(call("evaluate", "run", folder, "--surprise", file, "--batch-size", 3))
    assert "--surprise has no use for SOURCE, --batch-size" in message
    # beside the earlier one
    assert (
        "run/evaluation/surprise.0.2-2.png"
        in succeeded(call("evaluate", "run", "--surprise", file, "--label", "b")).stdout
    )


def test_what_cannot_be_evaluated_is_refused_in_one_line(
    call, folder, mean_network, tmp_path, monkeypatch
):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))
    assert "the run held out no images: name a folder" in failed(call("evaluate", "run"))
    assert "nowhere does not exist" in failed(
        call("evaluate", "run", "nowhere", "--features", "none")
    )
    assert "must end in .json" in failed(call("evaluate", "run", folder, "--output", "report.txt"))
    assert "--label is for --surprise" in failed(call("evaluate", "run", folder, "--label", "a"))
    assert "the run has no labels" in failed(
        call("evaluate", "run", "--surprise", folder / "a/0.png", "--label", "a")
    )
    assert "count must be of at least 10 images for distances, got 3" in failed(
        call("evaluate", "run", folder, "--features", mean_network, "--count", 3, "--steps", 1)
    )
    (tmp_path / "other.pt2").write_bytes(b"")
    assert "other.pt2 holds no network" in failed(
        call("evaluate", "run", folder, "--features", "other.pt2")
    )
    assert "images must be of shape" in failed(
        call("evaluate", "run", "digits", "--features", "none")
    )
    images = torch.rand(2, 3, 8, 8)
    torch.export.save(torch.export.export(torch.nn.Flatten(), (images,)), tmp_path / "two.pt2")
    assert "two.pt2 does not take (3 3 8 8) images" in failed(
        call("evaluate", "run", folder, "--features", "two.pt2")
    )
    # before any work
    monkeypatch.setattr(reports, "bits_per_dim", None)
    for options, message in (
        (("--solver", "rk5"), "solver must be one of"),
        (("--guidance", 2), "--guidance other than 1 needs a run"),
        (("--output", "images/a/0.png/report.json"), "0.png"),
    ):
        assert message in failed(
            call("evaluate", "run", folder, "--features", mean_network, *options)
        )
    assert not list(tmp_path.rglob("report*"))


def test_inception_without_its_weights(call, folder, monkeypatch):
    succeeded(call("train", folder, *TINY, "--image-size", 8, "--patch-size", 4, "--run", "run"))

    def fail(self):
        raise OSError("no network")

    monkeypatch.setattr(metrics.Inception, "__init__", fail)
    message = failed(call("evaluate", "run", folder))
    assert "the weights of Inception cannot be downloaded: no network" in message
    assert "--features takes another network, or none" in message
    # which bits per dimension alone do not need
    assert "bits per dimension" in succeeded(call("evaluate", "run", folder, "--count", 0)).stdout


def test_a_head_without_a_density_is_measured_by_distances_alone(call, tmp_path):
    succeeded(call("train", *TINY, "--head", "energy", "--hold-out", 0.02))
    result = succeeded(call("evaluate", "runs/digits", "--features", "none", "--count", 40))
    found = report(tmp_path / "runs/digits")
    assert "bits_per_dim" not in found
    assert found["generated"]["sliced_wasserstein"] > 0
    assert found["generated"]["evaluations"] == 1
    assert "bits per dimension" not in result.stdout
    Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    message = failed(call("evaluate", "runs/digits", "--surprise", tmp_path / "digit.png"))
    assert "no density: heads that have one are diffusion, flow, flow_map" in message
