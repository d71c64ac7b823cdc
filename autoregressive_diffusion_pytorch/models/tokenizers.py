"""Tokenizers: images to tokens and back."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from math import isfinite
from typing import ClassVar

import torch
from einops import rearrange
from torch import Generator, Tensor
from torch.nn import Module

from ..utils.rng import rand
from ..utils.validation import as_height_and_width, check_positive_int

BEYOND_NOISE = 10  # no sample of a standard Gaussian is as far from 0
ROUNDING = 1 / 255  # how far from [0, 1] values in it may be rounded


class Tokenizer(Module, ABC):
    """Turns images (b c h w) in [0, 1] into tokens (b n d) of about unit scale, and back.

    Attributes:
        image_size: height and width of the images.
        channels: of the images.
        grid: rows and columns of tokens, in raster order: n is their product.
        dim: width d of a token.
    """

    image_size: tuple[int, int]
    channels: int
    grid: tuple[int, int]
    dim: int

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width in pixels of what one token shows."""
        return tuple(size // n for size, n in zip(self.image_size, self.grid, strict=True))

    def fits_on(self, images: Tensor) -> bool:
        """Whether images are as large as these, or larger by whole tokens."""
        sizes = zip(images.shape[-2:], self.image_size, self.cell, strict=False)
        return images.ndim == 4 and all(
            size >= own and (size - own) % cell == 0 for size, own, cell in sizes
        )

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (b c h w) in [0, 1] to tokens (b n d)."""

    @abstractmethod
    def encode_rows(self, images: Tensor) -> Tensor:
        """The first rows of images to the tokens of those rows, (b n d)."""

    @abstractmethod
    def encode_known(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Images to tokens, without reading pixels where `hidden` (b 1 h w) is True."""

    def draw(self, images: Tensor) -> Tensor:
        """Tokens to train on, at random where images do not determine them."""
        return self.encode(images)

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (b n d) to images (b c h w) in [0, 1]."""

    def check_images(self, images: Tensor) -> None:
        """Whether images are real numbers of the right shape."""
        shape = (self.channels, *self.image_size)
        if not images.is_floating_point():
            raise TypeError(
                f"images must be real numbers in [0, 1], got {images.dtype}: divide 8-bit values "
                "by 255"
            )
        if images.ndim != 4 or images.shape[1:] != shape:
            expected = " ".join(map(str, shape))
            raise ValueError(f"images must be of shape (b {expected}), got {tuple(images.shape)}")

    def check_range(self, images: Tensor, *, strict: bool = False) -> None:
        """Whether the values of images are in [0, 1].

        Those of a usual mistake are an error: 8-bit values, values normalised to [-1, 1], and what
        is not finite. Others are warned of, for noise is a fair stand-in for images.

        Args:
            strict: any others are an error too.
        """
        if images.numel() == 0 or images.is_meta:
            return
        low, high = torch.stack(images.detach().aminmax()).tolist()  # a GPU is waited for, once
        seen = f"images must have values in [0, 1], got {low:g} to {high:g}"
        if not (isfinite(low) and isfinite(high)):
            raise ValueError(f"{seen}: some are no finite numbers")
        if max(-low, high) > BEYOND_NOISE:
            raise ValueError(f"{seen}: divide 8-bit values by 255")
        if -1 - 2 * ROUNDING <= low < -0.5 and high <= 1 + 2 * ROUNDING:
            raise ValueError(f"{seen}: leave out Normalize(0.5, 0.5), or invert it by x / 2 + 0.5")
        if strict and (low < 0 or high > 1):
            raise ValueError(seen)
        if low < -ROUNDING or high > 1 + ROUNDING:
            cause = "Normalize with the mean and std of a data set is to be left out"
            warnings.warn(f"{seen}: {cause}", stacklevel=3)
        elif 0 < high < 1.5 / 255 and not strict:
            warnings.warn(f"{seen}: were they divided by 255 twice?", stacklevel=3)


class Patches(Tokenizer):
    """Patches of pixels, row by row: each a token (channel, height, width) of values in [-1, 1].

    Args:
        image_size: height and width of the images, one number for square ones.
        patch_size: height and width of a patch, one number for square ones; must divide the image
            size.
        channels: channels of the images.
    """

    VALUE_INTERVAL: ClassVar[float] = 2 / 255  # between neighbouring 8-bit values, in tokens

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int = 3,
    ):
        super().__init__()
        self.image_size = as_height_and_width("image_size", image_size)
        self.patch_size = as_height_and_width("patch_size", patch_size)
        sizes = list(zip(self.image_size, self.patch_size, strict=True))
        if any(image % patch for image, patch in sizes):
            raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")
        check_positive_int(channels=channels)
        self.channels = channels
        self.grid = tuple(image // patch for image, patch in sizes)
        self.dim = channels * self.patch_size[0] * self.patch_size[1]

    def encode(self, images: Tensor) -> Tensor:
        return patchify(images * 2 - 1, self.patch_size)

    def encode_rows(self, images: Tensor) -> Tensor:
        return self.encode(images)

    def encode_known(self, images: Tensor, hidden: Tensor) -> Tensor:
        return self.encode(images.masked_fill(hidden, 0.5))

    def dequantize(self, images: Tensor, generator: Generator | None) -> Tensor:
        """As `encode`, with noise that is uniform within the interval rounded to an 8-bit value."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        noise = rand(images.shape, generator, images.device, images.dtype)
        values = (images * 255).round() + noise - 0.5
        return patchify(values * self.VALUE_INTERVAL - 1, self.patch_size)

    def decode(self, tokens: Tensor) -> Tensor:
        images = unpatchify(tokens, self.patch_size, self.image_size)
        return (images / 2 + 0.5).clamp(0, 1)


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images (b c h w) to tokens (b n d) of the same values."""
    p, q = patch_size
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)


def unpatchify(tokens: Tensor, patch_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, for images of `image_size` (height, width)."""
    (p, q), rows = patch_size, image_size[0] // patch_size[0]
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=q)
