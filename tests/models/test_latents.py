"""Models of the latents of an autoencoder of diffusers."""

import copy
import json

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from helpers import stir

from autoregressive_diffusion_pytorch import (
    ImageAutoregressive,
    ImageAutoregressiveFlow,
    ImageMaskedAutoregressive,
)
from autoregressive_diffusion_pytorch.models.latents import FrozenAutoencoder, Latents, spread

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def small_model(autoencoder, model_class=ImageAutoregressiveFlow, **kwargs):
    torch.manual_seed(0)
    sizes = dict(image_size=(8, 12), patch_size=1, model=SIZES) | kwargs
    return stir(model_class(autoencoder=str(autoencoder), **sizes)).eval()


def masked_model(autoencoder):
    return small_model(autoencoder, ImageMaskedAutoregressive, model=SIZES | dict(head="energy"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_latents_are_those_of_diffusers_and_decode_to_the_same_images(autoencoder):
    images = torch.rand(2, 3, 8, 12)
    tokenizer = Latents((8, 12), (1, 2), str(autoencoder))
    assert tokenizer.latent_shape == (4, 4, 6)
    assert (tokenizer.grid, tokenizer.dim, tokenizer.cell) == ((4, 3), 8, (2, 4))
    own = AutoencoderKL.from_pretrained(autoencoder).eval()
    with torch.no_grad():
        posterior = own.encode(images * 2 - 1).latent_dist
        decoded = own.decode(posterior.mean).sample
    tokens = tokenizer.encode(images)
    torch.testing.assert_close(tokens, tokenizer.tokens_of((posterior.mean - 0.1) * 0.5))
    expected = (decoded / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(tokens), expected, rtol=1e-4, atol=1e-4)
    mean, std = tokenizer.autoencoder.encode(images)
    torch.testing.assert_close(std, posterior.std * 0.5)
    many = torch.stack([tokenizer.latents_of(images, seeded(i)) for i in range(400)])
    assert (many.mean(dim=0) - mean).abs().le(5 * std / 400**0.5).all()


KINDS = {
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ),
    "dc": lambda: AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_autoencoders_without_a_posterior(kind, tmp_path):
    KINDS[kind]().save_pretrained(tmp_path)
    tokenizer = Latents(8, 1, str(tmp_path))
    images = torch.rand(2, 3, 8, 8)
    mean, std = tokenizer.autoencoder.encode(images)
    assert std is None
    assert torch.equal(tokenizer.latents_of(images), mean)
    assert tokenizer.decode(tokenizer.draw(images)).shape == images.shape


def test_the_autoencoder_is_no_part_of_the_model_and_loaded_when_needed(autoencoder):
    model = small_model(autoencoder)
    frozen = model.tokenizer.autoencoder
    names = [*model.state_dict(), *dict(model.named_parameters()), *dict(model.named_modules())]
    assert not any("autoencoder" in name or name.startswith("tokenizer.") for name in names)
    model(latents=torch.randn(2, 4, 4, 6)).backward()
    assert frozen._module is None
    model(torch.rand(2, 3, 8, 12)).backward()
    assert not any(p.requires_grad or p.grad is not None for p in frozen._module.parameters())
    model.train()
    assert not frozen._module.training
    assert copy.deepcopy(model).tokenizer.autoencoder is frozen
    # rounded weights of the model do not round it
    assert model.bfloat16().sample(1, num_steps=1).dtype == torch.float32


def test_images_and_their_latents_have_the_same_loss(autoencoder):
    model, images = small_model(autoencoder), torch.rand(2, 3, 8, 12)
    torch.manual_seed(1)
    of_images = model(images, loss_reduction="none")
    torch.manual_seed(1)
    latents = model.tokenizer.latents_of(images)
    of_latents = model(latents=latents, loss_reduction="none")
    assert of_images.shape == (2, 24)
    assert torch.equal(of_images, of_latents)


def test_tokens_are_normalised_by_default(autoencoder):
    model = small_model(autoencoder)
    latents = 5 + 3 * torch.randn(64, 4, 4, 6)
    model.measure(latents=latents)
    tokens = model.tokenizer.tokens_of(latents)
    torch.testing.assert_close(model.model.normalization.mean, tokens.flatten(0, 1).mean(dim=0))
    assert model.config["model"]["normalize"] is True
    assert not model.head.clamp_during_sampling
    own = small_model(autoencoder, model=SIZES | dict(normalize=False))
    assert own.config["model"]["normalize"] is False


def test_log_prob_is_that_of_latents(autoencoder):
    model, latents = small_model(autoencoder), torch.randn(2, 4, 4, 6)
    options = dict(solver="euler", num_steps=2)
    nats = model.log_prob(latents=latents, **options)
    assert nats.shape == (2, 24)
    per_dim = model.nats_per_dim(latents, **options)
    torch.testing.assert_close(per_dim, -nats.sum(dim=1) / 96)
    for method in (model.log_prob, model.bits_per_dim):
        with pytest.raises(TypeError, match=r"log_prob\(latents=…\) gives that of latents"):
            method(torch.rand(2, 3, 8, 12))


def test_wrong_arguments_are_refused(autoencoder):
    model, images, latents = (
        small_model(autoencoder),
        torch.rand(2, 3, 8, 12),
        torch.randn(2, 4, 4, 6),
    )
    with pytest.raises(TypeError, match="either images or latents, got both"):
        model(images, latents=latents)
    with pytest.raises(TypeError, match="either images or latents, got neither"):
        model()
    with pytest.raises(ValueError, match=r"latents must be of shape \(b 4 4 6\)"):
        model(latents=latents[:, :3])
    with pytest.raises(TypeError, match="latents must be real numbers"):
        model(latents=latents.long())
    pixels = ImageAutoregressiveFlow(image_size=8, patch_size=4, model=SIZES)
    with pytest.raises(TypeError, match="latents are of models with an autoencoder"):
        pixels(latents=latents)
    with pytest.raises(TypeError, match="latents are of models with an autoencoder"):
        pixels.log_prob(latents=latents)


def test_autoencoders_that_do_not_fit_are_refused(autoencoder, tmp_path):
    with pytest.raises(ValueError, match=r"image_size must be a multiple .* got \(9, 9\)"):
        Latents(9, 1, str(autoencoder))
    with pytest.raises(ValueError, match="channels must be 3"):
        Latents(8, 1, str(autoencoder), channels=1)
    with pytest.raises(ValueError, match="patch_size 3 does not divide the latents of 4 x 4"):
        Latents(8, 3, str(autoencoder))
    with pytest.raises(OSError, match="nowhere"):
        FrozenAutoencoder("nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json, nor a folder vae"):
        FrozenAutoencoder(tmp_path / "empty")
    config = json.loads((autoencoder / "config.json").read_text())
    for name in ("UNet2DModel", "AutoencoderOfNone", None):
        (autoencoder / "config.json").write_text(json.dumps(config | dict(_class_name=name)))
        with pytest.raises(ValueError, match=f"whose class is Autoencoder…, got {name}"):
            FrozenAutoencoder(autoencoder)
    (autoencoder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        FrozenAutoencoder(autoencoder)


def test_no_pickle_is_read(autoencoder):
    (weights,) = autoencoder.glob("*.safetensors")
    torch.save({}, autoencoder / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        Latents(8, 1, str(autoencoder)).encode(torch.rand(1, 3, 8, 8))


def test_the_autoencoder_of_a_pipeline(autoencoder, tmp_path):
    (tmp_path / "pipeline").mkdir()
    autoencoder.rename(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    tokenizer = Latents(8, 1, str(tmp_path / "pipeline"))
    assert tokenizer.encode(torch.rand(1, 3, 8, 8)).shape == (1, 16, 4)


@pytest.mark.parametrize("model_class", [ImageAutoregressiveFlow, ImageMaskedAutoregressive])
def test_samples_are_images(autoencoder, model_class):
    own = {} if model_class is ImageAutoregressiveFlow else dict(head="energy")
    model = small_model(autoencoder, model_class, model=SIZES | own)
    images = model.sample(2, generator=seeded())
    assert images.shape == (2, 3, 8, 12)
    assert images.min() >= 0
    assert images.max() <= 1
    *_, last = model.stream(2, generator=seeded())
    torch.testing.assert_close(last, images)


def test_completions_keep_rows_and_do_not_read_the_others(autoencoder):
    model, images = small_model(autoencoder), torch.rand(2, 3, 8, 12)
    other = images.clone()
    other[:, :, 4:] = torch.rand(2, 3, 4, 12)
    drawn = model.complete(images, 4, num_completions=2, generator=seeded())
    assert torch.equal(drawn[:, :, :4], images[:, :, :4].repeat_interleave(2, dim=0))
    assert torch.equal(drawn, model.complete(other, 4, num_completions=2, generator=seeded()))
    assert not torch.equal(drawn, model.complete(1 - images, 4, num_completions=2))
    assert model.complete(images, 0).shape == images.shape
    assert torch.equal(model.complete(images, 8), images)
    with pytest.raises(ValueError, match="keep_rows must be a multiple of the patch height 2"):
        model.complete(images, 3)


def test_fills_keep_pixels_and_do_not_read_the_others(autoencoder):
    model, images = masked_model(autoencoder), torch.rand(2, 3, 8, 12)
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[3:6, 2:7] = True
    read = images.masked_fill(mask, torch.nan)
    filled = model.fill(read, mask, generator=seeded())
    assert filled.isfinite().all()
    assert torch.equal(filled[..., ~mask], images[..., ~mask])
    assert torch.equal(filled, model.fill(images, mask, generator=seeded()))
    whole = model.fill(images, mask, whole_patches=True, generator=seeded())
    cells = torch.zeros(8, 12, dtype=torch.bool)
    cells[2:6, 2:8] = True
    assert torch.equal(whole[..., ~cells], images[..., ~cells])
    assert torch.equal(whole[..., mask], filled[..., mask])


def test_larger_canvases_are_filled(autoencoder):
    model, images = masked_model(autoencoder), torch.rand(1, 3, 10, 16)
    mask = torch.zeros(10, 16, dtype=torch.bool)
    mask[:, 12:] = True
    filled = model.fill(images, mask, generator=seeded())
    assert torch.equal(filled[..., ~mask], images[..., ~mask])
    with pytest.raises(ValueError, match="images must be of shape"):
        model.fill(torch.rand(1, 3, 9, 16), mask[:9])


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 9)])
def test_what_is_near_takes_the_place_of_what_is_hidden(size):
    images = torch.rand(2, 3, *size)
    hidden = torch.rand(2, 1, *size) < 0.7
    hidden[1] = True
    made = spread(images.masked_fill(hidden, torch.nan), hidden)
    assert torch.equal(made, torch.where(hidden, made, images))
    assert made.min() >= 0
    assert made.max() <= 1
    torch.testing.assert_close(made[1], torch.full_like(made[1], 0.5))
    ones = spread(torch.ones(1, 3, *size), hidden[:1])
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_a_saved_model_finds_its_autoencoder_or_is_told_where_it_lies(autoencoder, tmp_path):
    model, images = small_model(autoencoder), torch.rand(1, 3, 8, 12)
    latents = model.tokenizer.latents_of(images, seeded())
    model.measure(latents=torch.randn(8, 4, 4, 6))
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 2e6
    options = dict(solver="euler", num_steps=2)
    expected = model.log_prob(latents=latents, **options)
    loaded = ImageAutoregressiveFlow.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded.log_prob(latents=latents, **options), expected)
    autoencoder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="autoencoder"):
        ImageAutoregressiveFlow.from_pretrained(tmp_path / "saved")
    moved = str(tmp_path / "moved")
    loaded = ImageAutoregressiveFlow.from_pretrained(tmp_path / "saved", autoencoder=moved)
    torch.testing.assert_close(loaded.log_prob(latents=latents, **options), expected)
    with pytest.raises(ValueError, match="no ImageAutoregressive"):
        ImageAutoregressive.from_pretrained(tmp_path / "saved")
