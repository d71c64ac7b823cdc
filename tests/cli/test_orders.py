"""Runs that draw in any order, through all commands."""

import json

import pytest
from command_line import TINY, failed, succeeded
from PIL import Image, ImageChops, ImageDraw

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageMaskedAutoregressive

ORDERS = dict(random=ImageAutoregressiveFlow, masked=ImageMaskedAutoregressive)
orders = pytest.mark.parametrize("order", ORDERS)


@pytest.fixture
def trained(call):
    def train(order, *options):
        succeeded(call("train", *TINY, "--order", order, "--run", "run", *options))

    return train


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((8, 8), 100).save(tmp_path / "digit.png")
    return Image.open(tmp_path / "digit.png")


@orders
def test_all_commands_know_the_order(call, trained, tmp_path, order):
    trained(order, "--labels", "--hold-out", 0.01)
    assert json.loads((tmp_path / "run/config.json").read_text())["order"] == order
    sample = ("sample", "run", "--label", 3, "--guidance", 2, "--guidance-schedule", "linear")
    succeeded(call(*sample, "--count", 2, "--order", "raster", "--iterations", 4))
    few = ("--count", 10, "--features", "none", "--solver", "euler", "--steps", 1)
    evaluated = succeeded(call("evaluate", "run", *few))
    assert "unbiased estimate of the mean over orders" in evaluated.stdout
    succeeded(call("export", "run", "model"))
    loaded = ORDERS[order].from_pretrained(tmp_path / "model")
    assert loaded.model.draws_any_order
    succeeded(call("distill", "run", "--head", "flow_map", "--steps", 1, "--run", "student"))
    succeeded(call("sample", "student", "--count", 1))


@orders
def test_a_run_is_resumed_in_its_order(call, tmp_path, order):
    options = ("train", *TINY, "--order", order)
    succeeded(call(*options, "--run", "whole", "--steps", 4))
    succeeded(call(*options, "--run", "parts", "--steps", 2))
    succeeded(call("resume", "parts", "--steps", 4))
    for name in ("model", "online"):
        file = f"checkpoints/checkpoint.4/{name}.safetensors"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@orders
def test_a_region_is_filled(call, trained, image, tmp_path, order):
    trained(order)
    fill = ("fill", "run", "digit.png", "--count", 3, "--files", "files", "--seed", 7)
    result = succeeded(call(*fill, "--box", "2,0,4,6"))
    assert result.stdout.splitlines() == ["run/samples/fill.digit.7.png", "files: 3 files"]
    filled = [Image.open(tmp_path / f"files/0000{i}.png") for i in range(3)]
    for one in filled:
        left, _, right, bottom = ImageChops.difference(one, image).getbbox()
        assert left >= 2
        assert right <= 6
        assert bottom <= 6
    assert filled[0].tobytes() != filled[1].tobytes()

    mask = Image.new("L", (8, 8))
    ImageDraw.Draw(mask).rectangle((2, 0, 5, 5), fill=255)
    mask.save(tmp_path / "mask.png")
    first = filled[0].tobytes()
    succeeded(call(*fill, "--mask", "mask.png"))
    assert Image.open(tmp_path / "files/00000.png").tobytes() == first

    succeeded(call(*fill, "--extend", "4,0,0,2"))
    larger = Image.open(tmp_path / "files/00000.png")
    assert larger.size == (12, 10)
    assert larger.crop((4, 0, 12, 8)).tobytes() == image.tobytes()


def test_regions_that_cannot_be(call, trained, image):
    trained("masked")
    assert "one of --mask, --box and --extend is needed" in failed(call("fill", "run", "digit.png"))
    both = ("--box", "0,0,2,2", "--extend", "2,0,0,0")
    assert "one of --mask, --box and --extend" in failed(call("fill", "run", "digit.png", *both))
    for box, message in (("1,2,3", "'1,2,3' is not X,Y,W,H"), ("5,0,4,4", "does not lie in 8 x 8")):
        assert message in failed(call("fill", "run", "digit.png", "--box", box))
    assert "no whole patches, of 2 x 2 pixels" in failed(
        call("fill", "run", "digit.png", "--extend", "3,0,0,0")
    )
    succeeded(call("train", *TINY))
    assert "`ardiff train --order masked` trains a run that fills any region" in failed(
        call("fill", "runs/digits", "digit.png", "--box", "0,0,2,2")
    )
    assert 'order must be "raster"' in failed(call("sample", "runs/digits", "--order", "random"))
    assert "--iterations is of models that draw in any order" in failed(
        call("sample", "runs/digits", "--iterations", 4)
    )
