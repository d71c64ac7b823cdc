"""The sliced Wasserstein distance between images, without a network.

Karras et al. 2018, section 5 (https://arxiv.org/abs/1710.10196).

Images are taken apart into a Laplacian pyramid, each level of which shows what there is at one
scale. From each level come small patches, and the distance of two sets of patches is the
Wasserstein distance along random directions, on average (https://arxiv.org/abs/1710.10196).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH_SIZE = 7
SMALLEST_LEVEL = 8  # pixels: the last level shows the layout of the whole image
PATCHES = 2**15  # per level and set of images
DIRECTIONS = 128
DIRECTIONS_AT_ONCE = 32


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """The Laplacian pyramid of images (b c h w), the finest level first (Burt & Adelson 1983)."""
    levels = []
    while min(images.shape[-2:]) >= 2 * SMALLEST_LEVEL:
        smaller = _blur(images)[..., ::2, ::2]
        levels.append(images - _enlarge(smaller, images.shape[-2:]))
        images = smaller
    return [*levels, images]


def _blur(images: Tensor) -> Tensor:
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    channels = images.shape[1]
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    images = F.conv2d(images, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return F.conv2d(images, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)


def _enlarge(images: Tensor, size: tuple[int, int]) -> Tensor:
    """To twice the size, with zeros between that the blur fills."""
    wide = images.new_zeros(*images.shape[:2], *size)
    wide[..., ::2, ::2] = 4 * images
    return _blur(wide)


def patches_per_image(num_images: int) -> int:
    return max(1, PATCHES // num_images)


def pyramid_patches(images: Tensor, per_image: int, generator: torch.Generator) -> list[Tensor]:
    """Patches at random places of images (b c h w), for each level (b · per_image, c, 7 · 7):
    fewer, where a level has no more."""
    found = []
    for level in laplacian_pyramid(images.float()):
        side = min(PATCH_SIZE, *level.shape[-2:])
        patches = (
            F.unfold(level, side).unflatten(1, (level.shape[1], -1)).movedim(-1, 1)
        )  # (b places c 7·7)
        places = torch.rand(patches.shape[:2], generator=generator).argsort(dim=1)[:, :per_image]
        found.append(patches[torch.arange(len(patches)).unsqueeze(1), places].flatten(0, 1))
    return found


def sliced_wasserstein(real: list[Tensor], other: list[Tensor], seed: int = 0) -> list[float]:
    """The distance of two sets of `pyramid_patches` per level, times 1,000 as is usual.

    Channels are brought to mean 0 and variance 1 by those of the real patches, so that too much or
    too little contrast counts. The same seed gives the same directions: distances to the same real
    patches compare.
    """
    generator = torch.Generator().manual_seed(seed)
    result = []
    for of_real, of_other in zip(real, other, strict=True):
        mean = of_real.mean(dim=(0, 2), keepdim=True)
        std = of_real.std(dim=(0, 2), keepdim=True).clamp(min=1e-6)
        sets = [((patches - mean) / std).flatten(1) for patches in (of_real, of_other)]
        directions = F.normalize(
            torch.randn(sets[0].shape[1], DIRECTIONS, generator=generator), dim=0
        )
        count = min(map(len, sets))
        total = 0.0
        for some in directions.split(DIRECTIONS_AT_ONCE, dim=1):
            # of sets of unequal size the same quantiles
            quantiles = [
                (patches @ some).sort(dim=0).values[torch.arange(count) * len(patches) // count]
                for patches in sets
            ]
            total += (quantiles[0] - quantiles[1]).abs().mean().item() * some.shape[1]
        result.append(1000 * total / DIRECTIONS)
    return result
