"""Regions of images that are drawn anew, on canvases of the model's size and larger."""

import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import (
    ImageAutoregressive,
    ImageAutoregressiveFlow,
    ImageMaskedAutoregressive,
)

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16, head="energy")
MODELS = dict(
    masked=(ImageMaskedAutoregressive, SIZES),
    random=(ImageAutoregressive, SIZES | dict(order="random")),
)
models = pytest.mark.parametrize("kind", MODELS)


def small_model(kind, **kwargs):
    torch.manual_seed(0)
    model_class, sizes = MODELS[kind]
    sizes = dict(image_size=(8, 12), patch_size=4, channels=2, model=sizes) | kwargs
    return stir(model_class(**sizes)).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def box(size, top, bottom, left, right):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


@models
def test_pixels_outside_of_the_mask_come_back_untouched(kind):
    model = small_model(kind)
    images, mask = torch.rand(2, 2, 8, 12), box((8, 12), 2, 7, 5, 12)
    read = images.masked_fill(mask, torch.nan)  # what is drawn anew is not read
    filled = model.fill(read, mask, num_completions=3, generator=seeded())
    assert filled.shape == (6, 2, 8, 12)
    assert torch.equal(filled[..., ~mask], images.repeat_interleave(3, dim=0)[..., ~mask])
    assert filled[..., mask].isfinite().all()
    assert not torch.equal(filled[0], filled[1])
    assert torch.equal(filled, model.fill(read, mask, num_completions=3, generator=seeded()))


@models
def test_patches_that_a_mask_cuts_are_drawn_whole(kind):
    model = small_model(kind)
    images, mask = torch.rand(1, 2, 8, 12), box((8, 12), 1, 3, 5, 6)  # in the patch at 0, 4
    whole = model.fill(images, mask, whole_patches=True, generator=seeded())
    pasted = model.fill(images, mask, generator=seeded())
    patch = box((8, 12), 0, 4, 4, 8)
    assert torch.equal(whole[..., ~patch], images[..., ~patch])
    assert (whole[..., patch] != images[..., patch]).all()
    assert torch.equal(pasted, torch.where(mask, whole, images))
    # nor is what the mask leaves of them read
    other = torch.where(patch & ~mask, torch.rand(1, 2, 8, 12), images)
    assert torch.equal(model.fill(other, mask, generator=seeded())[..., mask], pasted[..., mask])


@models
def test_an_empty_mask_is_the_identity_and_a_full_one_a_sample(kind):
    model = small_model(kind, num_classes=3)
    images, labels = torch.rand(2, 2, 8, 12), torch.tensor([2, 0])
    empty, full = torch.zeros(8, 12).bool(), torch.ones(2, 8, 12).bool()
    assert torch.equal(model.fill(images, empty, labels=labels), images)
    options = dict(labels=labels, guidance_scale=2.0)
    filled = model.fill(images, full, generator=seeded(), **options)
    assert torch.equal(filled, model.sample(2, generator=seeded(), **options))


@models
def test_each_image_has_its_own_mask_label_and_completions(kind):
    model = small_model(kind, num_classes=3)
    images, masks = torch.rand(2, 2, 8, 12), torch.stack((box((8, 12), 0, 8, 0, 4),) * 2)
    masks[1] = box((8, 12), 0, 4, 0, 12)
    generators = [seeded(i) for i in range(4)]
    options = dict(labels=[2, 0], num_completions=2, generator=generators)
    filled = model.fill(images, masks, **options)
    for i in range(2):
        options = dict(labels=[2, 0][i], num_completions=2)
        generators = [seeded(2 * i), seeded(2 * i + 1)]
        one = model.fill(images[i : i + 1], masks[i], generator=generators, **options)
        torch.testing.assert_close(one, filled[2 * i : 2 * i + 2], rtol=1e-4, atol=1e-4)
    # one image for several labels
    several = model.fill(images[:1], masks[0], labels=[0, 1, 2], num_completions=2)
    assert several.shape == (6, 2, 8, 12)


@models
def test_a_picture_grows_by_iterations(kind):
    model = small_model(kind)
    options = dict(num_iterations=3, order="random")
    pictures = list(model.stream(2, generator=seeded(), **options))
    assert len(pictures) == 3
    assert torch.equal(pictures[-1], model.sample(2, generator=seeded(), **options))
    grey = [int((picture == 0.5).sum()) for picture in pictures]
    assert grey == sorted(grey, reverse=True)
    assert grey[-1] == 0
    drawn = pictures[0] != 0.5
    assert torch.equal(pictures[1][drawn], pictures[0][drawn])


@models
def test_a_region_grows_by_iterations(kind):
    model = small_model(kind)
    image, mask = torch.rand(1, 2, 8, 12), box((8, 12), 0, 5, 3, 12)
    own = dict(num_completions=3, num_iterations=3)
    pictures = list(model.stream_fill(image, mask, generator=seeded(), **own))
    assert len(pictures) == 3
    assert torch.equal(pictures[-1], model.fill(image, mask, generator=seeded(), **own))
    assert (pictures[0][:, :, mask] == 0.5).any()
    assert all(
        torch.equal(picture[:, :, ~mask], image[:, :, ~mask].expand(3, -1, -1))
        for picture in pictures
    )
    other = torch.stack((mask, box((8, 12), 0, 4, 0, 4)))
    with pytest.raises(ValueError, match=r"mask must mark as many tokens .* got 1 and 6"):
        model.stream_fill(image.expand(2, -1, -1, -1), other)


@models
def test_a_larger_canvas_is_filled_by_windows(kind):
    model = small_model(kind, num_classes=3)
    images, mask = torch.rand(2, 2, 16, 24), torch.ones(16, 24).bool()
    mask[4:12, 8:20] = False
    given = (images.masked_fill(mask, torch.nan), mask)
    options = dict(labels=[0, 2], num_completions=2)
    filled = model.fill(*given, generator=seeded(), **options)
    assert filled.shape == (4, 2, 16, 24)
    assert filled.isfinite().all()
    assert torch.equal(filled[..., ~mask], images.repeat_interleave(2, dim=0)[..., ~mask])
    assert torch.equal(filled, model.fill(*given, generator=seeded(), **options))
    assert not torch.equal(filled[0], filled[1])


@models
def test_windows_read_what_those_before_have_drawn(kind, monkeypatch):
    model, seen = small_model(kind), []
    fill = model.fill

    def record(images, mask, **options):
        seen.append((images.clone(), mask.clone()))
        return fill(images, mask, **options)

    monkeypatch.setattr(model, "fill", record)
    images, mask = torch.rand(1, 2, 8, 24), box((8, 24), 0, 8, 12, 24)
    filled = fill(images, mask, generator=seeded())
    # that with more known pixels first: columns 4 to 16, of 12, then 8 to 20, then the last ones
    assert [int(mask.sum()) for _, mask in seen] == [32, 32, 32]
    for start, (window, own) in zip((4, 8, 12), seen, strict=True):
        known = filled[..., start : start + 12]
        assert torch.equal(window[..., ~own], known[..., ~own])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@models
def test_images_on_a_processor_are_filled_by_a_model_on_a_gpu(kind):
    model = small_model(kind).to("cuda")
    for size in ((8, 12), (16, 24)):
        images, mask = torch.rand(2, 2, *size), torch.zeros(size, dtype=torch.bool)
        mask[:4] = True
        filled = model.fill(images, mask, num_completions=2, generator=seeded()).cpu()
        expected = images.repeat_interleave(2, dim=0)
        assert torch.equal(filled[..., ~mask], expected[..., ~mask])


@models
def test_regions_that_are_none_are_refused(kind):
    model = small_model(kind)
    images, mask = torch.rand(1, 2, 8, 12), torch.ones(8, 12).bool()
    with pytest.raises(ValueError, match=r"mask must be of shape \(8, 12\) or \(1, 8, 12\)"):
        model.fill(images, mask[:4])
    with pytest.raises(TypeError, match="mask must hold booleans, True for pixels to draw"):
        model.fill(images, mask.float())
    with pytest.raises(ValueError, match="num_completions must be"):
        model.fill(images, mask, num_completions=0)
    with pytest.raises(ValueError, match=r"images must be of shape \(b 2 8 12\)"):
        model.fill(torch.rand(1, 2, 8, 14), torch.ones(8, 14).bool())
    with pytest.raises(ValueError, match="for images larger than those of the model"):
        model.fill(torch.rand(2, 2, 16, 12), torch.ones(2, 16, 12).bool())
    with pytest.raises(ValueError, match="8-bit values"):
        model.fill(255 * images, box((8, 12), 0, 4, 0, 4))


def test_raster_models_complete_and_do_not_fill():
    sizes = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)
    model = ImageAutoregressiveFlow(image_size=8, patch_size=4, channels=2, model=sizes)
    with pytest.raises(TypeError, match="regions can be filled by models that draw in any order"):
        model.fill(torch.rand(1, 2, 8, 8), torch.ones(8, 8).bool())
