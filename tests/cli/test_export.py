import json
import os
from pathlib import Path

import pytest
import torch
from command_line import TINY, failed, succeeded
from huggingface_hub import ModelCard

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.models import program
from autoregressive_diffusion_pytorch.models.hub import class_names
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings
from autoregressive_diffusion_pytorch.utils.manifests import best_checkpoint


@pytest.mark.parametrize("labels", [(), ("--labels",)])
def test_exports_a_model_with_its_card(call, tmp_path, labels):
    succeeded(call("train", *TINY, *labels, "--hold-out", 0.01, "--checkpoint-every", 1))
    result = succeeded(call("export", "runs/digits", "out/model"))
    assert result.stdout == "out/model\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model"}
    files = {path.name for path in (tmp_path / "out/model").iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation.json",
        "model.safetensors",
        "samples.png",
    } | ({"classes.json"} if labels else set())
    card = ModelCard.load("out/model/README.md")
    assert card.data.library_name == "autoregressive-diffusion-pytorch"
    assert "![samples](samples.png)" in card.text
    for fact in (
        "| images | digits |",
        "| steps | ",
        "| validation loss | ",
        "on 1.0% of the images",
        "ImageAutoregressiveFlow",
    ):
        assert fact in card.text, fact
    assert ("| 0 | 0 |\n| 1 | 1 |" in card.text) == bool(labels)
    assert class_names("out/model") == (list("0123456789") if labels else None)
    assert "ardiff train digits " in card.text
    assert "ardiff sample runs/digits --checkpoint " in card.text
    best = best_checkpoint("runs/digits/checkpoints")
    model, expected = (
        ImageAutoregressiveFlow.from_pretrained(folder) for folder in ("out/model", best)
    )
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert "is not empty: name another one" in failed(call("export", "runs/digits", "out/model"))
    (tmp_path / "empty").mkdir()
    succeeded(call("export", "runs/digits", "empty", "--checkpoint", 1))


def report(step, mean, **distances):
    return dict(
        checkpoint=f"checkpoint.{step}",
        source="/home/me/more photos",
        images=1200,
        bits_per_dim=dict(mean=mean, standard_error=0.01, density="exact, in raster order"),
        sampling=dict(features="/home/me/network.pt2", temperature=0.9, solver="dpmpp_2m"),
    ) | (dict(generated=dict(count=500, evaluations=8, **distances)) if distances else {})


def test_the_card_tells_settings_and_the_newest_reports_of_the_checkpoint(call, tmp_path):
    succeeded(call("train", *TINY, "--checkpoint-every", 1))
    GenerationSettings(num_steps=5, context_guidance=1.5).save(tmp_path / "runs/digits")
    reports = {
        "report.2": report(2, 9.5, frechet_distance=70.0, frechet_distance_std=0.1),
        "report.2-2": report(2, 3.25),
        "report.1": report(1, 1.75, frechet_distance=1.5),
        "tune.2": {},
    }
    (tmp_path / "runs/digits/evaluation").mkdir()
    for age, (name, found) in enumerate(reports.items()):
        file = tmp_path / f"runs/digits/evaluation/{name}.json"
        file.write_text(json.dumps(found))
        os.utime(file, (age, age))
    succeeded(call("export", "runs/digits", "model", "--checkpoint", 2))
    card = (tmp_path / "model/README.md").read_text()
    for line in (
        "| bits per dimension | 3.2500 ± 0.0100, of 1,200 images (more photos); exact, in raster "
        "order |",
        "| frechet distance | 70.0000, of 500 drawn and 1,200 images (more photos); temperature "
        "0.9; features of network.pt2 |",
        "| num steps | 5 |",
        "| context guidance | 1.5 |",
        "| solver | dpmpp_2m |",
        "| evaluations per token | 5 |",
    ):
        assert line in card, line
    assert "1.75" not in card
    assert "distance std" not in card


def test_names_of_classes_come_back_and_are_known_to_a_fine_tuning(call, labelled):
    (labelled / "daisy").rename(labelled / "a | b")
    succeeded(call("train", labelled, *TINY, "--labels", "--image-size", 8, "--run", "again"))
    succeeded(call("export", "again", "model"))
    assert class_names("model") == ["a | b", "rose", "tulip"]
    assert "| 0 | a \\| b |" in Path("model/README.md").read_text()
    options = ("--labels", "--from", "model", "--batch-size", 4, "--steps", 1)
    assert "have no names" not in succeeded(call("train", labelled, *options)).output


@pytest.mark.parametrize("held", ["{", "[1, 2]", '{"a": 1}'])
def test_damaged_names_of_classes_are_told(tmp_path, held):
    assert class_names(tmp_path) is None
    (tmp_path / "classes.json").write_text(held)
    with pytest.raises(ValueError, match=r"classes\.json (is damaged|must hold a list of names)"):
        class_names(tmp_path)


def test_a_program_lies_beside_the_weights(call, tmp_path):
    succeeded(call("train", *TINY, "--labels", "--head", "energy"))
    assert "--guidance is of a --program" in failed(
        call("export", "runs/digits", "model", "--guidance", 2)
    )
    options = ("--program", "torch", "--guidance", 2)
    result = succeeded(call("export", "runs/digits", "model", *options))
    assert "program.pt2: its first 4 tokens differ by at most" in result.stderr
    settings = program.read_settings("model")
    assert settings["inputs"]["guidance_scale"]["initial"] == 2
    run = program.load_program("model")
    sizes = dict(batch=3, count=settings["num_start"], length=0)
    assert run(program.filled(settings["inputs"], sizes))["token"].shape == (3, 4)
    card = (tmp_path / "model/README.md").read_text()
    assert 'torch.export.load("program.pt2").module()' in card
    assert (tmp_path / "model/model.safetensors").exists()


def test_a_program_that_cannot_be_leaves_nothing_behind(call, tmp_path, monkeypatch):
    succeeded(call("train", *TINY, "--order", "random"))
    before = sorted(tmp_path.rglob("*"))
    message = failed(call("export", "runs/digits", "model", "--program", "torch"))
    assert "a program can be of models in raster order, this one draws in random order" in message
    assert sorted(tmp_path.rglob("*")) == before
    succeeded(call("train", *TINY, "--run", "raster"))
    before = sorted(tmp_path.rglob("*"))

    def write(made, folder):
        folder.mkdir()
        raise ValueError("the program's tokens differ")

    monkeypatch.setattr(program.Program, "write", write)
    assert "tokens differ" in failed(call("export", "raster", "model", "--program", "torch"))
    assert sorted(tmp_path.rglob("*")) == before
