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
