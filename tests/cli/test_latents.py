"""`ardiff train-autoencoder` and `ardiff encode`, and runs on the latents that they make."""

import json

import pytest
import torch
from command_line import TINY, failed, succeeded
from PIL import Image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.data.latents import LatentDataset

AUTOENCODER = ["--width", "4", "--image-size", "8", "--factor", "2", "--latent-channels", "2"]


@pytest.fixture
def run(call, cache):
    succeeded(call("train", cache, *TINY, "--hold-out", 0.5, "--run", "run"))
    return "run"


def test_an_autoencoder_is_trained_resumed_and_encodes(call, folder, tmp_path):
    command = ("train-autoencoder", folder, "--output", "ae", *AUTOENCODER, "--batch-size", 4)
    command += ("--hold-out", 0.2)
    result = succeeded(call(*command, "--steps", 2))
    assert "4 images held out" in result.output
    assert "dB (PSNR)" in result.output
    assert "--resume goes on" in failed(call(*command, "--steps", 3))
    message = failed(call(*command, "--resume", "--steps", 3, "--learning-rate", 0.1))
    assert "was started with learning_rate = 0.001" in message
    succeeded(call(*command, "--resume", "--steps", 3))
    assert (tmp_path / "ae" / "training" / "samples" / "results.3.png").exists()
    succeeded(call("encode", folder, "--autoencoder", "ae", "--output", "cache"))
    dataset = LatentDataset(tmp_path / "cache")
    assert dataset.classes is None
    latents = torch.stack([dataset[i]["latents"] for i in range(20)])
    assert latents.shape == (20, 2, 4, 4)
    assert abs(latents.std() - 1) < 0.3


def test_an_output_among_the_images_is_refused(call, folder, autoencoder):
    message = failed(call("train-autoencoder", folder, "--output", folder / "ae", *AUTOENCODER))
    assert "with --output" in message
    command = ("encode", folder, "--autoencoder", autoencoder, "--output", folder / "cache")
    assert "with --output" in failed(call(*command))


def test_encode_is_gone_on_with_and_other_options_are_refused(call, folder, autoencoder, cache):
    command = ("encode", folder, "--autoencoder", autoencoder, "--output", cache, "--labels")
    assert "flip 'both', and not 'none'" in failed(call(*command, "--shard-size", 8))
    again = call(*command, "--flip", "both", "--shard-size", 8)
    assert "0 images encoded" in succeeded(again).output


def test_damaged_images_stop_encode_or_are_left_out(call, folder, autoencoder):
    (folder / "a" / "0.png").write_bytes(b"no image")
    command = ("encode", folder, "--autoencoder", autoencoder, "--output", "cache")
    assert "--skip-damaged leaves such files out" in failed(call(*command))
    with pytest.warns(UserWarning, match="1 of 20 image files are left out"):
        succeeded(call(*command[:-1], "other", "--skip-damaged"))
    assert len(LatentDataset("other")) == 19


def test_a_run_on_latents(call, folder, run, autoencoder, tmp_path):
    config = json.loads((tmp_path / run / "config.json").read_text())
    assert config["kind"] == "latents"
    assert config["model"]["autoencoder"] == str(autoencoder)
    assert config["model"]["patch_size"] == 1
    assert config["classes"] == ["a", "b"]
    assert (tmp_path / run / "samples" / "results.2.png").exists()
    succeeded(call("resume", run, "--steps", 3))
    succeeded(call("sample", run, "--count", 1, "--files", "files"))
    assert Image.open(tmp_path / "files" / "00000.png").size == (8, 8)
    image = folder / "a" / "0.png"
    succeeded(call("complete", run, image, "--keep-rows", 4, "--count", 1))
    assert "multiple of the patch height 2" in failed(
        call("complete", run, image, "--keep-rows", 3)
    )
    for source in ((), (folder,)):
        report = call("evaluate", run, *source, "--features", "none", "--tolerance", 0.1)
        assert "nats per dim. of latents" in succeeded(report).output
    message = failed(call("evaluate", run, "--surprise", image, "--label", "a"))
    assert "a model of latents has no density of images" in message
    assert "the run is on latents" in failed(call("resume", run, "--steps", 4, "--flip"))


def test_a_run_on_latents_is_exported_and_distilled(call, run, tmp_path):
    succeeded(call("export", run, "exported"))
    images = ImageAutoregressiveFlow.from_pretrained(tmp_path / "exported").sample(1, labels=0)
    assert images.shape == (1, 3, 8, 8)
    succeeded(call("distill", run, "--head", "energy", "--steps", 1, "--run", "student"))
    succeeded(call("sample", "student", "--count", 1))


def test_a_run_whose_autoencoder_was_moved(call, run, autoencoder, tmp_path):
    autoencoder.rename(tmp_path / "moved")
    assert str(autoencoder) in failed(call("sample", run, "--count", 1))
    file = tmp_path / run / "config.json"
    file.write_text(file.read_text().replace(str(autoencoder), str(tmp_path / "moved")))
    succeeded(call("sample", run, "--count", 1))


def test_any_region_is_filled(call, cache, folder):
    succeeded(call("train", cache, *TINY, "--order", "masked", "--run", "masked"))
    image = folder / "a" / "0.png"
    succeeded(call("fill", "masked", image, "--box", "1,1,3,3", "--count", 1, "--label", "a"))
    message = failed(call("fill", "masked", image, "--extend", "1,0,0,0", "--count", 1))
    assert "whole patches, of 2 x 2 pixels" in message


def test_options_that_the_cache_decides_are_refused(call, cache, folder, autoencoder):
    message = failed(call("train", cache, *TINY, "--flip"))
    assert "--flip is of images, SOURCE holds latents" in message
    succeeded(call("encode", folder, "--autoencoder", autoencoder, "--output", "plain"))
    assert "holds no labels" in failed(call("train", "plain", *TINY, "--labels"))


def test_a_cache_that_is_not_whole_is_refused(call, cache, tmp_path):
    (tmp_path / cache / "shard.00000.safetensors").write_bytes(b"")
    assert "writes it again" in failed(call("train", cache, *TINY))


def test_a_run_goes_on_from_one_on_the_same_latents(call, cache, run, folder):
    succeeded(call("train", cache, "--from", run, "--steps", 1, "--run", "again"))
    succeeded(call("resume", "again", "--steps", 2))
    message = failed(call("train", folder, "--from", run, "--steps", 1, "--run", "other"))
    assert "is a model of latents, SOURCE holds images" in message
