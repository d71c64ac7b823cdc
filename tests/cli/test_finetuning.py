"""`ardiff train --from`."""

import json

import numpy as np
import pytest
import torch
from command_line import TINY, failed, succeeded
from PIL import Image
from safetensors.torch import load_file

from autoregressive_diffusion_pytorch import (
    ImageAutoregressive,
    ImageAutoregressiveFlow,
    ImageMaskedAutoregressive,
)
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings

SHORT = ("--batch-size", 4, "--steps", 2)
SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def weights(folder, name="model"):
    return load_file(folder / f"{name}.safetensors")


def test_a_run_goes_on_from_another(call, tmp_path):
    succeeded(call("train", *TINY, "--run", "old"))
    GenerationSettings(temperature=0.9).save(tmp_path / "old")
    options = ("--labels", "--freeze", "backbone", "--freeze", "proj_in", *SHORT)
    succeeded(call("train", "--from", "old", *options, "--run", "new", "--steps", 4))
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["from"] == str(tmp_path / "old")
    assert config["freeze"] == ["backbone", "proj_in"]
    assert config["model"]["num_classes"] == 10
    assert config["model"]["model"]["dim"] == 16
    assert config["trainer"]["learning_rate"] == 2e-3  # of a new model of about this width
    assert GenerationSettings.load(tmp_path / "new") == GenerationSettings(temperature=0.9)
    before = weights(tmp_path / "old/checkpoints/checkpoint.2")
    for name in ("model", "online"):
        for key, weight in weights(tmp_path / "new/checkpoints/checkpoint.4", name).items():
            if key in before:
                stays = key.startswith(("model.backbone.", "model.proj_in.", "model.head.sigma"))
                assert torch.equal(weight, before[key]) == stays, key

    # it goes on by itself to the same bits, from the start too
    options = ("--from", "old", "--labels", "--freeze", "backbone", "--freeze", "proj_in")
    succeeded(call("train", *options, *SHORT, "--run", "parts"))
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    succeeded(call("resume", "parts", "--steps", 4))
    for checkpoint in (tmp_path / "parts/checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    whole = (tmp_path / "new/checkpoints/checkpoint.4/online.safetensors").read_bytes()
    assert (tmp_path / "checkpoint.4/online.safetensors").read_bytes() == whole
    succeeded(call("resume", "parts"))
    again = tmp_path / "parts/checkpoints/checkpoint.4/online.safetensors"
    assert again.read_bytes() == whole
    succeeded(call("sample", "new", "--label", 3, "--count", 1))
    succeeded(call("export", "new", "model"))


@pytest.mark.parametrize("order", ["random", "masked"])
def test_the_order_is_the_model_s(call, tmp_path, order):
    succeeded(call("train", *TINY, "--order", order, "--labels", "--run", "old"))
    checkpoint = tmp_path / "old/checkpoints/checkpoint.2"
    succeeded(call("train", "--from", checkpoint, "--labels", *SHORT, "--run", "new"))
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["order"] == order
    cls = ImageMaskedAutoregressive if order == "masked" else ImageAutoregressiveFlow
    assert config["model"] == cls.from_pretrained(checkpoint).config
    succeeded(call("resume", "new", "--steps", 3))


def test_a_class_keeps_its_embedding_by_its_name(call, labelled, tmp_path):
    for i in range(2):
        (labelled / "poppy").mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (250, 9, 9 * i)).save(labelled / "poppy" / f"{i}.jpg")
    for file in (labelled / "daisy").iterdir():
        file.unlink()
    (labelled / "daisy").rmdir()
    (labelled / "aster").mkdir()
    Image.new("RGB", (20, 16), (9, 9, 250)).save(labelled / "aster/0.jpg")
    options = ("--from", "run", "--labels", "--image-size", 16)
    succeeded(call("train", labelled, *options, *SHORT, "--run", "new"))
    name = "model.conditioning.label_embeds"
    daisy, rose, tulip, null = weights(tmp_path / "run/checkpoints/checkpoint.2")[name]
    mean = (daisy + rose + tulip) / 3
    found = weights(tmp_path / "new/initial")[name]
    # aster, poppy, rose, tulip
    torch.testing.assert_close(found, torch.stack((mean, mean, rose, tulip, null)))

    # names are known of runs alone
    ImageAutoregressiveFlow.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "model")
    result = succeeded(call("train", labelled, "--from", "model", "--labels", *SHORT))
    assert "model have no names: they are taken in their order" in result.stderr


def test_a_model_that_python_has_made(call, tmp_path):
    sizes = dict(image_size=8, patch_size=2, channels=1)
    model = ImageAutoregressive(model=SIZES | dict(head="flow"), **sizes)
    model.save_pretrained(tmp_path / "model")
    succeeded(call("train", "--from", "model", *SHORT, "--run", "new", "--noise-draws", 3))
    new = ImageAutoregressiveFlow.from_pretrained(tmp_path / "new")
    assert (new.head.num_noise_draws, new.config["model"]["dim_head"]) == (3, 8)
    succeeded(call("resume", "new", "--steps", 3))

    model.model.save_pretrained(tmp_path / "sequences")
    message = failed(call("train", "--from", "sequences"))
    assert "sequences is a model of sequences, SOURCE holds images" in message


@pytest.fixture
def walks(tmp_path):
    def walks(folder, lengths, width=2):
        for i, length in enumerate(lengths):
            file = tmp_path / folder / "ab"[i % 2] / f"{i}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.random.default_rng(i).normal(size=(length, width)).astype("float32"))

    return walks


def test_sequences(call, walks, tmp_path):
    walks("short", [4, 5, 4, 3])
    walks("long", [4, 9, 4, 8])
    walks("wide", [4, 4], width=3)
    succeeded(call("train", "short", *TINY, "--labels", "--run", "old", "--dropout", 0.1))
    options = ("--from", "old", "--labels", "--freeze", "head", *SHORT)
    succeeded(call("train", "long", *options, "--run", "new"))
    config = json.loads((tmp_path / "new/config.json").read_text())["model"]
    assert config["decoder_kwargs"] == dict(attn_dropout=0.1, ff_dropout=0.1)
    assert config["predict_end"]
    before = weights(tmp_path / "old/checkpoints/checkpoint.2")["backbone.positions.tables.0"]
    now = weights(tmp_path / "new/initial")["backbone.positions.tables.0"]
    assert (len(before), len(now)) == (7, 12)
    assert torch.equal(now[:7], before)
    succeeded(call("resume", "new", "--steps", 3))
    # shorter ones, of one length: the model stays as long as it is, and knows no ends
    walks("even", [3, 3])
    succeeded(call("train", "even", "--from", "new", *SHORT, "--run", "even-run"))
    config = json.loads((tmp_path / "even-run/config.json").read_text())["model"]
    assert (config["max_seq_len"], config["num_classes"]) == (12, None)
    assert not config["predict_end"]

    for arguments, message in {
        ("wide", "--run", "x"): "SOURCE holds tokens of 3 numbers, the model of --from is for 2",
        ("long", "--dropout", 0.2): "--dropout 0.2 contradicts the model of --from, which has 0.1",
        ("digits",): "old is a model of sequences, SOURCE holds images",
    }.items():
        assert message in failed(call("train", *arguments, "--from", "old"))


def test_what_contradicts_the_model_is_named(call, tmp_path):
    succeeded(call("train", *TINY, "--run", "old"))
    for options, message in {
        ("--dim", 32): "--dim 32 contradicts the model of --from, which has 16",
        ("--head", "energy"): "--head energy contradicts the model of --from, which has flow",
        ("--order", "masked"): "--order masked contradicts the model of --from, which has raster",
        ("--patch-size", 4): "--patch-size 4 contradicts the model of --from, which has 2",
        ("--size", "base"): "--size is of a new model: that of --from has its own",
        ("--freeze", "spine"): "freeze must name parts among ",
        ("--image-size", 16): "the model of --from draws 8 x 8 pixels in 1 channels",
    }.items():
        output = failed(call("train", "--from", "old", *options, "--run", "new"))
        assert message in output, output
    assert "--freeze is of a training --from a model" in failed(call("train", "--freeze", "head"))
    assert "the folder ./nowhere does not exist" in failed(call("train", "--from", "./nowhere"))
    assert not (tmp_path / "new").exists()
    # what agrees is no contradiction
    agreed = ("--dim", 16, "--head", "flow", "--patch-size", 2, *SHORT)
    succeeded(call("train", "--from", "old", *agreed, "--run", "new"))
