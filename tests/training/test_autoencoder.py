"""Training of an autoencoder of diffusers."""

import pytest
import torch
from diffusers import AutoencoderKL
from small_trainings import names

from autoregressive_diffusion_pytorch.training.autoencoder import (
    AutoencoderLoss,
    AutoencoderTrainer,
    make_autoencoder,
    psnr,
    reconstruct,
)

SIZES = dict(image_size=8, channels=1, latent_channels=2, factor=2, width=4)


def small_autoencoder(**kwargs):
    torch.manual_seed(0)
    return make_autoencoder(**SIZES | kwargs)


def images(count=12):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trainer_in(folder, **kwargs):
    settings = dict(
        dataset=images(),
        num_train_steps=4,
        batch_size=4,
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "samples",
        logs_folder=folder / "logs",
        accelerate_kwargs=dict(cpu=True),
    )
    return AutoencoderTrainer(small_autoencoder(), **settings | kwargs)


@pytest.mark.parametrize(("factor", "channels"), [(2, 1), (4, 3), (8, 3)])
def test_sizes(factor, channels):
    autoencoder = small_autoencoder(image_size=16, factor=factor, channels=channels)
    latents = autoencoder.encode(torch.rand(1, channels, 16, 16)).latent_dist.mean
    assert latents.shape == (1, 2, 16 // factor, 16 // factor)
    assert autoencoder.decode(latents).sample.shape == (1, channels, 16, 16)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="factor must be one of 2, 4, 8, 16, 32, got 3"):
        small_autoencoder(factor=3)
    with pytest.raises(ValueError, match="image_size must be a multiple of factor 2, got 7"):
        small_autoencoder(image_size=7)


def test_the_loss_is_the_absolute_error_and_the_divergence():
    loss, batch = AutoencoderLoss(small_autoencoder(), kl_weight=0.5), images(3)
    torch.manual_seed(1)
    value = loss(batch)
    parts = loss.metrics()
    posterior = loss.autoencoder.encode(batch * 2 - 1).latent_dist
    torch.manual_seed(1)
    decoded = loss.autoencoder.decode(posterior.sample()).sample
    error = (decoded - (batch * 2 - 1)).abs().mean()
    nats = posterior.kl().sum() / batch.numel()
    torch.testing.assert_close(parts["absolute_error"], error)
    torch.testing.assert_close(parts["kl_per_value"], nats)
    torch.testing.assert_close(value, error + 0.5 * nats)


def test_psnr_of_known_errors():
    zeros = torch.zeros(2, 1, 4, 4)
    found = psnr(zeros, zeros + torch.tensor([0.1, 1.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(found, torch.tensor([20.0, 0.0]))


def test_a_training_ends_with_the_files_of_diffusers(tmp_path):
    trainer = trainer_in(tmp_path, validation_dataset=images(5), save_results_every=2)
    trainer()
    assert names(tmp_path / "samples") == ["results.2.png", "results.4.png"]
    assert trainer.psnr() > 0
    trainer.save_autoencoder(tmp_path / "autoencoder")
    loaded = AutoencoderKL.from_pretrained(tmp_path / "autoencoder", use_safetensors=True).eval()
    averaged = trainer.ema.ema_model.autoencoder
    assert torch.equal(reconstruct(loaded, images()), reconstruct(averaged, images()))
    with torch.no_grad():
        latents = loaded.encode(images() * 2 - 1).latent_dist
    scaled = (latents.mean - loaded.config.shift_factor) * loaded.config.scaling_factor
    assert abs(scaled.mean()) < 1e-4
    variance = scaled.var() + (latents.var * loaded.config.scaling_factor**2).mean()
    torch.testing.assert_close(variance, torch.tensor(1.0), rtol=1e-3, atol=0)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = trainer_in(tmp_path / "whole")
    whole()
    trainer_in(tmp_path / "parts", num_train_steps=2)()
    resumed = trainer_in(tmp_path / "parts", resume=True)
    resumed()
    pairs = (trainer.unwrapped_model.state_dict().values() for trainer in (whole, resumed))
    assert all(map(torch.equal, *pairs))


def test_it_learns(tmp_path):
    trainer = trainer_in(tmp_path, num_train_steps=30, learning_rate=1e-2, log_with=None)
    before = psnr(images(), reconstruct(trainer.ema.ema_model.autoencoder, images())).mean()
    trainer()
    after = psnr(images(), reconstruct(trainer.ema.ema_model.autoencoder, images())).mean()
    assert after > before + 1
