"""Caches of latents: written whole or gone on with, and read as a training needs them."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from autoregressive_diffusion_pytorch import ImageDataset
from autoregressive_diffusion_pytorch.data.image_files import DamagedImageError
from autoregressive_diffusion_pytorch.data.latents import LatentDataset, is_cache, write_cache

FACTS = dict(
    autoencoder="ae",
    autoencoder_sha256="0",
    source="images",
    image_size=8,
    channels=3,
    latent_shape=[3, 4, 4],
    classes=["a", "b"],
    dataset={},
)


def encode(images):
    """Means of 2 × 2 pixels, and a std that tells them apart."""
    mean = torch.nn.functional.avg_pool2d(images, 2)
    return mean, 0.1 + mean / 10


@pytest.fixture
def images(tmp_path):
    """Seven images of two classes, none of them symmetric."""
    generator = torch.Generator().manual_seed(0)
    for i in range(7):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return ImageDataset(tmp_path / "images", 8, labels_from_folders=True)


def write(folder, images, encode=encode, facts=FACTS, **options):
    return write_cache(folder, images, encode, facts, **dict(batch_size=2, shard_size=3) | options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read(images, tmp_path):
    assert write(tmp_path / "cache", images) == 7
    assert is_cache(tmp_path / "cache")
    dataset = LatentDataset(tmp_path / "cache")
    assert len(dataset) == 7
    assert dataset.classes == ["a", "b"]
    for i, (image, label) in enumerate(images):
        mean, std = (x[0] for x in encode(image.unsqueeze(0)))
        items = [dataset[i] for _ in range(200)]
        assert items[0].keys() == {"latents", "labels"}
        assert items[0]["labels"] == label
        latents = torch.stack([item["latents"] for item in items])
        assert latents.dtype == torch.float32
        assert ((latents.mean(dim=0) - mean).abs() < 5 * std / 200**0.5 + 1e-3).all()
        torch.testing.assert_close(latents.std(dim=0), std, rtol=0.4, atol=0)
    with pytest.raises(IndexError):
        dataset[7]


def test_a_validation_sees_always_the_same(images, tmp_path):
    write(tmp_path / "cache", images, flip="both")
    dataset = LatentDataset(tmp_path / "cache").without_augmentation()
    first, second = ([dataset[i]["latents"] for i in range(7)] for _ in range(2))
    assert all(map(torch.equal, first, second))
    noise = [
        (latents - encode(image.unsqueeze(0))[0][0]) / encode(image.unsqueeze(0))[1][0]
        for latents, (image, _) in zip(first, images, strict=True)
    ]
    assert torch.stack(noise).abs().max() < 5
    assert not torch.allclose(noise[0], noise[1], atol=0.1)


def test_mirrored_images_are_drawn_half_of_the_time(images, tmp_path):
    plain = lambda images: (encode(images)[0], None)  # noqa: E731
    write(tmp_path / "cache", images, plain, flip="both")
    dataset = LatentDataset(tmp_path / "cache")
    mean = plain(images[0][0].unsqueeze(0))[0][0].half().float()
    drawn = [dataset[0]["latents"] for _ in range(200)]
    mirrored = [torch.equal(latents, mean.flip(-1)) for latents in drawn]
    assert all(m or torch.equal(x, mean) for m, x in zip(mirrored, drawn, strict=True))
    assert 60 < sum(mirrored) < 140
    assert torch.equal(dataset.without_augmentation()[0]["latents"], mean)


def test_workers_read_it_too(images, tmp_path):
    write(tmp_path / "cache", images)
    dataset = LatentDataset(tmp_path / "cache").without_augmentation()
    expected = torch.stack([dataset[i]["latents"] for i in range(7)])  # opened before the fork
    (batch,) = DataLoader(dataset, batch_size=7, num_workers=1)
    assert torch.equal(batch["latents"], expected)
    pickled = pickle.loads(pickle.dumps(dataset))  # of processes that are not forked
    assert torch.equal(pickled[3]["latents"], expected[3])


class Killed(Exception):
    pass


@pytest.mark.parametrize("calls", range(1, 8))
def test_what_was_interrupted_ends_with_the_same_bytes(images, tmp_path, calls):
    write(tmp_path / "whole", images, flip="both")
    count = 0

    def failing(pixels):
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return encode(pixels)

    with pytest.raises(Killed):
        write(tmp_path / "cache", images, failing, flip="both")
    with pytest.raises(ValueError, match=r"is not whole, \d of 7 images"):
        LatentDataset(tmp_path / "cache")
    write(tmp_path / "cache", images, flip="both")
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    assert write(tmp_path / "cache", images, flip="both") == 0


def test_a_killed_process_is_gone_on_with(images, tmp_path):
    write(tmp_path / "whole", images, shard_size=1)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_latents import ImageDataset, encode, write
        def slow(images):
            time.sleep(0.2)
            return encode(images)
        images = ImageDataset("images", 8, labels_from_folders=True)
        write("cache", images, slow, shard_size=1)
        """)
    )
    process = subprocess.Popen([sys.executable, script], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "cache" / "shard.00001.safetensors").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(json.loads((tmp_path / "cache" / "cache.json").read_text())["shards"])
    assert write(tmp_path / "cache", images, shard_size=1) == 7 - done > 0
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_other_sources_and_options_are_refused(images, tmp_path):
    cache = tmp_path / "cache"
    write(cache, images)
    before = contents(cache)
    with pytest.raises(ValueError, match=r"begun with flip 'none', and not 'both'"):
        write(cache, images, flip="both")
    with pytest.raises(ValueError, match="batch_size 2, and not 3; shard_size 3, and not 4"):
        write(cache, images, batch_size=3, shard_size=4)
    with pytest.raises(ValueError, match="autoencoder_sha256 '0', and not '1'"):
        write(cache, images, facts=FACTS | dict(autoencoder_sha256="1"))
    images.paths[0].write_bytes(images.paths[0].read_bytes() + b"0")
    with pytest.raises(ValueError, match="listing_sha256"):
        write(cache, images)
    with pytest.raises(ValueError, match="flip must be one of 'none', 'both'"):
        write(tmp_path / "other", images, flip="random")
    assert contents(cache) == before


def test_damaged_shards_are_found_and_written_again(images, tmp_path):
    cache = tmp_path / "cache"
    write(cache, images)
    before, shard = contents(cache), cache / "shard.00001.safetensors"
    data = shard.read_bytes()
    for damaged, fault in ((data[:-1] + b"x", "its hash differs"), (data[:-1], "holds")):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{fault}.*`ardiff encode`"):
            LatentDataset(cache)
        assert write(cache, images) == 4  # and those after it
        assert contents(cache) == before
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        LatentDataset(cache)


def test_what_is_no_cache_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no cache\.json"):
        LatentDataset(tmp_path)
    file = tmp_path / "cache.json"
    for text, fault in (("{", "damaged"), ("{}", "damaged"), ('{"version": 9, "shards": []}', "9")):
        file.write_text(text)
        with pytest.raises(ValueError, match=fault):
            LatentDataset(tmp_path)


def test_a_damaged_image_stops_it_and_costs_no_shard(images, tmp_path):
    images.paths[5].write_bytes(b"no image")
    with pytest.raises(DamagedImageError, match=images.paths[5].name):
        write(tmp_path / "cache", images)
    assert len(json.loads((tmp_path / "cache" / "cache.json").read_text())["shards"]) == 1


def test_values_that_float16_cannot_hold_are_an_error(images, tmp_path):
    with pytest.raises(ValueError, match="mean of the latents holds values that float16"):
        write(tmp_path / "cache", images, lambda images: (1e6 + encode(images)[0], None))
