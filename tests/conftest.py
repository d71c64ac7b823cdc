import os
import sys

import pytest
import torch
from click.testing import CliRunner
from command_line import TINY, succeeded
from helpers import reset_accelerate
from PIL import Image

from autoregressive_diffusion_pytorch.cli import main

# the networks here are so small that a second thread costs more than it gives
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    if "accelerate" in sys.modules:
        reset_accelerate()


@pytest.fixture
def class_folders(tmp_path):
    """Images of two classes, one of them with a folder within."""
    for i, path in enumerate(("tulip/b.png", "rose/a.png", "rose/more/c.png", "tulip/a.png")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (60 * i, 0, 0)).save(tmp_path / path)
    return tmp_path


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run that has ended, with a validation loss: not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "digits"
    every = ("--checkpoint-every", "2", "--sample-every", "2", "--steps", "4")
    options = (*TINY, *every, "--hold-out", "0.5", "--run", str(folder))
    before = os.environ.get("ACCELERATE_USE_CPU")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        succeeded(CliRunner().invoke(main, ["train", "digits", *options]))
    finally:
        os.environ.pop("ACCELERATE_USE_CPU")
        if before is not None:
            os.environ["ACCELERATE_USE_CPU"] = before
        reset_accelerate()
    return folder


class Means(torch.nn.Module):
    """The mean of each quarter of an image."""

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def mean_network(tmp_path):
    """A file of an exported network."""
    file = tmp_path / "network.pt2"
    images = (torch.rand(2, 3, 8, 8),)
    torch.export.save(
        torch.export.export(
            Means(), images, dynamic_shapes=dict(images={0: torch.export.Dim("batch")})
        ),
        file,
    )
    return file


@pytest.fixture
def autoencoder(tmp_path):
    """The folder of a small AutoencoderKL of diffusers: latents (4 h/2 w/2) of RGB images."""
    from diffusers import AutoencoderKL

    made = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=8,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    made.save_pretrained(tmp_path / "autoencoder")
    return tmp_path / "autoencoder"


def pytest_addoption(parser):
    group = parser.getgroup("pages")
    group.addoption("--run", help="a trained run whose pages are looked at")
    group.addoption("--image", help="an image to upload there")
    group.addoption("--screenshots", help="folder for pictures of them")
