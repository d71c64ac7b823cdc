import math

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import ImageAutoregressiveDiffusion, ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.image import patchify, unpatchify

models = pytest.mark.parametrize("model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow])
SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def small_model(model_class, **kwargs):
    return stir(model_class(**(dict(image_size=8, patch_size=4, model=SMALL) | kwargs)), 0.02)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("image_size", "patch_size"), [((8, 8), (4, 4)), ((4, 12), (2, 2)), ((12, 4), (3, 2)), ((6, 6), (6, 6)), ((3, 5), (1, 1))]
)
def test_patchify_and_back_is_the_identity(image_size, patch_size, channels):
    images = torch.randn(2, channels, *image_size)
    tokens = patchify(images, patch_size)
    count = math.prod(image_size) // math.prod(patch_size)
    assert tokens.shape == (2, count, channels * math.prod(patch_size))
    assert torch.equal(unpatchify(tokens, patch_size, image_size), images)


def test_patches_come_row_by_row():
    images = torch.arange(4 * 6).view(1, 1, 4, 6)
    tokens = patchify(images, (2, 3))
    assert tokens[0, 0].tolist() == [0, 1, 2, 6, 7, 8]
    assert tokens[0, 1].tolist() == [3, 4, 5, 9, 10, 11]
    assert tokens[0, 2].tolist() == [12, 13, 14, 18, 19, 20]


@models
@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"), [(8, 4, 3), (8, 4, 1), ((4, 8), 4, 4), ((8, 4), 2, 2), ((8, 12), (4, 3), 3)]
)
def test_images_of_all_shapes(model_class, image_size, patch_size, channels):
    model = small_model(model_class, image_size=image_size, patch_size=patch_size, channels=channels)
    images = torch.rand(2, channels, *model.image_size)
    loss = model(images)
    assert loss.shape == ()
    loss.backward()
    samples = model.sample(batch_size=2)
    assert samples.shape == images.shape
    assert samples.min() >= 0
    assert samples.max() <= 1


@models
def test_values_from_0_to_1_become_tokens_from_minus_1_to_1(model_class, monkeypatch):
    model = small_model(model_class)
    images = torch.rand(2, 3, 8, 8)
    seen = {}

    def record(seq, **kwargs):
        seen.update(kwargs, seq=seq)
        return torch.zeros(())

    monkeypatch.setattr(model.model, "forward", record)
    model(images)
    assert torch.equal(seen["seq"], patchify(images * 2 - 1, (4, 4)))
    assert seen["noised_seq"] is None

    monkeypatch.setattr(model.model, "sample", lambda *args, **kwargs: seen["seq"])
    torch.testing.assert_close(model.sample(2), images)


@models
def test_training_noise_reaches_the_transformer_only_while_training(model_class, monkeypatch):
    model = small_model(model_class, train_max_noise=0.5)
    images = torch.rand(4000, 3, 8, 8)
    seen = {}

    def record(seq, noised_seq, **kwargs):
        seen.update(seq=seq, noised_seq=noised_seq)
        return torch.zeros(())

    monkeypatch.setattr(model.model, "forward", record)
    model.eval()(images)
    assert seen["noised_seq"] is None
    model.train()(images)
    assert torch.equal(seen["seq"], patchify(images * 2 - 1, (4, 4)))
    # noised = (1 - share) tokens + share · noise, the share even from 0 to 0.5 and one for each image
    share = 1 - (seen["noised_seq"] * seen["seq"]).sum(dim=(1, 2)) / seen["seq"].square().sum(dim=(1, 2))
    assert share.mean() == pytest.approx(0.25, abs=5 * 0.5 / math.sqrt(12 * 4000) + 5 * 0.1 / math.sqrt(4000))
    assert share.quantile(0.95) > 0.4
    assert share.quantile(0.05) < 0.1


def test_denoised_tokens_are_clamped_for_images_unless_told_otherwise():
    assert small_model(ImageAutoregressiveDiffusion).model.head.clamp_during_sampling
    off = SMALL | dict(diffusion_kwargs=dict(clamp_during_sampling=False, sigma_max=40.0))
    head = small_model(ImageAutoregressiveDiffusion, model=off).model.head
    assert not head.clamp_during_sampling
    assert head.sigma_max == 40.0


@models
def test_positions_are_those_of_rows_and_columns(model_class):
    model = small_model(model_class, image_size=(8, 12), patch_size=2)
    assert [len(table) for table in model.model.backbone.positions.tables] == [4, 6]


@models
def test_same_seed_same_images(model_class):
    model = small_model(model_class)
    first, second = (model.sample(2, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


@models
def test_a_stream_shows_the_growing_images(model_class):
    model = small_model(model_class, image_size=(8, 12))
    sample = model.sample(2, generator=torch.Generator().manual_seed(1))
    pictures = list(model.stream(2, generator=torch.Generator().manual_seed(1)))
    assert len(pictures) == 6
    assert torch.equal(pictures[-1], sample)
    # after four patches: a row of three and the first of the next, and grey
    assert torch.equal(pictures[3][:, :, :4], sample[:, :, :4])
    assert torch.equal(pictures[3][:, :, 4:, :4], sample[:, :, 4:, :4])
    assert (pictures[3][:, :, 4:, 4:] == 0.5).all()
    for draw in (model.sample, model.stream):
        with pytest.raises(TypeError, match="prompt"):
            draw(2, prompt=torch.zeros(2, 1, 48))


@models
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(patch_size=3), "patch_size 3 does not divide image_size 8"),
        (dict(image_size=(8, 9)), r"patch_size 4 does not divide image_size \(8, 9\)"),
        (dict(image_size=0), "image_size must be a whole number of at least 1"),
        (dict(image_size=(8, 8, 8)), r"or \(height, width\), got \(8, 8, 8\)"),
        (dict(channels=0), "channels must be a whole number of at least 1, got 0"),
        (dict(train_max_noise=1.0), "train_max_noise must be at least 0 and below 1, got 1.0"),
        (dict(train_max_noise=-0.1), "train_max_noise must be at least 0 and below 1, got -0.1"),
        (dict(model=SMALL | dict(max_seq_len=4)), "model must not hold 'max_seq_len'"),
        (dict(model=SMALL | dict(dim_input=4)), "model must not hold 'dim_input'"),
    ],
)
def test_bad_arguments(model_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_model(model_class, **kwargs)


@models
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), ValueError, r"images must be of shape \(b 3 8 8\), got \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 4), ValueError, r"got \(2, 3, 8, 4\)"),
        (torch.zeros(3, 8, 8), ValueError, r"got \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, r"got torch.uint8: divide 8-bit values by 255"),
    ],
)
def test_bad_images(model_class, images, error, message):
    with pytest.raises(error, match=message):
        small_model(model_class)(images)
