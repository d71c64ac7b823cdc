import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images

SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def test_images_drawn_in_batches():
    model = stir(
        ImageAutoregressiveFlow(image_size=4, patch_size=2, channels=1, num_classes=3, model=SMALL)
    )
    labels = torch.ones(5, dtype=torch.long)
    images = draw_images(model, 5, batch_size=2, seed=3, labels=labels)
    assert images.shape == (5, 1, 4, 4)
    assert len(images.flatten(1).unique(dim=0)) == 5  # no batch is another again
    assert torch.equal(draw_images(model, 5, batch_size=2, seed=3, labels=labels), images)
    assert not torch.equal(draw_images(model, 5, batch_size=2, seed=4, labels=labels), images)
    # the first ones do not depend on how many follow
    assert torch.equal(draw_images(model, 2, batch_size=2, seed=3, labels=labels[:2]), images[:2])


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("options", [{}, dict(solver="heun", num_steps=3, context_guidance=1.5)])
def test_an_image_of_a_seed_depends_on_nothing_else(labelled, options):
    num_classes = 3 if labelled else None
    sizes = dict(image_size=4, patch_size=2, channels=1, num_classes=num_classes)
    model = stir(ImageAutoregressiveFlow(**sizes, model=SMALL))
    settings = dict(seed=3, **options)
    labels = torch.tensor([0, 0, 0, 2, 2, 2]) if labelled else None
    images = draw_images(model, 6, batch_size=6, labels=labels, **settings)
    assert len(images.flatten(1).unique(dim=0)) == 6
    # other products of matrices differ in the last digits
    close = dict(rtol=0, atol=1e-5)
    for batch_size in (1, 4):
        other = draw_images(model, 6, batch_size=batch_size, labels=labels, **settings)
        torch.testing.assert_close(other, images, **close)
    alone = draw_images(model, 6, batch_size=6, labels=labels, only=[4, 1], **settings)
    torch.testing.assert_close(alone, images[[4, 1]], **close)
    if labelled:  # the second and third image of label 2, whatever else there is
        labels = torch.tensor([2, 2, 1, 2])
        other = draw_images(model, 4, batch_size=3, labels=labels, **settings)
        torch.testing.assert_close(other[[1, 3]], images[[4, 5]], **close)


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        (7, TypeError, r"generator must be a torch.Generator, .*, or one per sample, got 7"),
        ([1, 2], TypeError, r"one per sample, got \[1, 2\]"),
        ([torch.Generator()], ValueError, "one, or 2 for as many samples, got 1"),
    ],
)
def test_what_is_no_generator_is_refused(generator, error, message):
    model = ImageAutoregressiveFlow(image_size=4, patch_size=2, channels=1, model=SMALL)
    with pytest.raises(error, match=message):
        model.sample(2, generator=generator)
