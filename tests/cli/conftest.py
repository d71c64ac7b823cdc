import pytest
from command_line import TINY, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow


@pytest.fixture
def flowers(tmp_path):
    folder = tmp_path / "flowers"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (20, 16), (40 * i, 250 - 40 * i, 9)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def labelled(call, flowers):
    """A run on flowers of three classes, and their folder."""
    for i, name in enumerate(("daisy", "rose", "tulip")):
        (flowers / name).mkdir()
        for j in range(2):
            (flowers / f"{2 * i + j}.jpg").rename(flowers / name / f"{j}.jpg")
    succeeded(
        call(
            "train",
            flowers,
            *TINY,
            "--labels",
            "--image-size",
            8,
            "--patch-size",
            4,
            "--run",
            "run",
        )
    )
    return flowers


@pytest.fixture
def drawn(monkeypatch):
    """What the model is asked to draw."""
    calls = []
    for name in ("sample", "complete"):
        method = getattr(ImageAutoregressiveFlow, name)

        def record(model, *args, method=method, **kwargs):
            calls.append(kwargs)
            return method(model, *args, **kwargs)

        monkeypatch.setattr(ImageAutoregressiveFlow, name, record)
    return calls


@pytest.fixture
def folder(tmp_path):
    """Ten images of each of two classes."""
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, 255 - 10 * i, 9)).save(path)
    return tmp_path / "images"


@pytest.fixture
def cache(call, folder, autoencoder):
    """A cache of latents of these images."""
    options = ("--autoencoder", autoencoder, "--labels", "--flip", "both", "--shard-size", 8)
    succeeded(call("encode", folder, "--output", "cache", *options))
    return "cache"
