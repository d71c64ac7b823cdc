import math

import pytest
import torch

from autoregressive_diffusion_pytorch.models.tokenizers import patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("image_size", "patch_size"),
    [((8, 8), (4, 4)), ((4, 12), (2, 2)), ((12, 4), (3, 2)), ((6, 6), (6, 6)), ((3, 5), (1, 1))],
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
