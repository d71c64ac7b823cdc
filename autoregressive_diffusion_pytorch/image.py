"""Images as sequences of tokens: patches in raster order, values between [0, 1] and [-1, 1]."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.autoregressive import Autoregressive, AutoregressiveDiffusion, AutoregressiveFlow
from autoregressive_diffusion_pytorch.checks import as_height_and_width, check_positive_int
from autoregressive_diffusion_pytorch.pretrained import Pretrained


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images (b c h w) to tokens (b n d): patches row by row, each flattened as (c, height, width)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch_size[0], q=patch_size[1])


def unpatchify(tokens: Tensor, patch_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, for images of `image_size` (height, width)."""
    rows = image_size[0] // patch_size[0]
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=patch_size[0], q=patch_size[1])


class ImageAutoregressive(Module, Pretrained):
    """Images through an autoregressive model over their patches: the base of `ImageAutoregressiveDiffusion` and its siblings.

    Args:
        image_size: height and width of the images, one number for square ones.
        patch_size: height and width of a patch, one number for square ones; must divide the image size.
        channels: channels of the images.
        train_max_noise: in [0, 1). While training, the transformer reads past tokens that are mixed with noise, an image's
            share of noise drawn evenly from 0 to this number: so it learns to go on from its own, imperfect tokens.
        model: arguments of the sequence model, but for `dim_input` and `max_seq_len`, which follow from the sizes.
        model_class: class of the sequence model.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int = 3,
        train_max_noise: float = 0.0,
        model: dict,
        model_class: type[Autoregressive],
    ):
        super().__init__()
        self.image_size = as_height_and_width("image_size", image_size)
        self.patch_size = as_height_and_width("patch_size", patch_size)
        if any(image % patch for image, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")
        check_positive_int(channels=channels)
        if not 0 <= train_max_noise < 1:
            raise ValueError(f"train_max_noise must be at least 0 and below 1, got {train_max_noise}")
        for name in ("dim_input", "max_seq_len"):
            if name in model:
                raise ValueError(f"model must not hold {name!r}: it follows from image_size, patch_size and channels")
        self.channels = channels
        self.train_max_noise = train_max_noise

        rows, columns = (image // patch for image, patch in zip(self.image_size, self.patch_size, strict=True))
        dim_input = channels * self.patch_size[0] * self.patch_size[1]
        self.model = model_class(**model, dim_input=dim_input, max_seq_len=(rows, columns))

    def _resolved_arguments(self) -> dict:
        derived = ("dim_input", "max_seq_len")
        return dict(model={name: value for name, value in self.model.config.items() if name not in derived})

    def forward(self, images: Tensor, *, loss_reduction: str = "mean") -> Tensor:
        """The loss of images (b c h w) with values in [0, 1]; with `loss_reduction = "none"` one for each patch, (b n)."""
        shape = (self.channels, *self.image_size)
        if not images.is_floating_point():
            raise TypeError(f"images must be real numbers in [0, 1], got {images.dtype}: divide 8-bit values by 255")
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(f"images must be of shape (b {shape[0]} {shape[1]} {shape[2]}), got {tuple(images.shape)}")
        tokens = patchify(images * 2 - 1, self.patch_size)
        noised = None
        if self.training and self.train_max_noise > 0:
            share = self.train_max_noise * torch.rand(len(tokens), 1, 1, device=tokens.device, dtype=tokens.dtype)
            noised = tokens.lerp(torch.randn_like(tokens), share)
        return self.model(tokens, noised_seq=noised, loss_reduction=loss_reduction)

    def sample(self, batch_size: int = 1, *, compile: bool = False, progress: bool = False, **sampler_kwargs) -> Tensor:
        """Draws images (b c h w) with values in [0, 1]. Arguments as of `Autoregressive.sample`, but for `prompt`."""
        return self._to_images(self.model.sample(batch_size, None, compile=compile, progress=progress, **sampler_kwargs))

    def stream(self, batch_size: int = 1, *, compile: bool = False, **sampler_kwargs) -> Iterator[Tensor]:
        """The images of `sample`, (b c h w), after each patch; grey where nothing is drawn yet.

        Arguments as of `sample`, but for `progress`.
        """
        tokens = self.model.stream(batch_size, None, compile=compile, **sampler_kwargs)
        return self._grow(tokens)

    def _grow(self, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
        seq = None
        for i, token in enumerate(tokens):
            if seq is None:
                seq = token.new_zeros(len(token), self.model.max_seq_len, self.model.dim_input)
            seq[:, i] = token
            yield self._to_images(seq)

    def _to_images(self, tokens: Tensor) -> Tensor:
        return (unpatchify(tokens, self.patch_size, self.image_size) / 2 + 0.5).clamp(0, 1)


class ImageAutoregressiveDiffusion(ImageAutoregressive):
    """Images by `AutoregressiveDiffusion`, denoised tokens held in the range of images. Arguments as of `ImageAutoregressive`."""

    def __init__(self, *, model: dict, **kwargs):
        diffusion_kwargs = dict(clamp_during_sampling=True) | (model.get("diffusion_kwargs") or {})
        super().__init__(model=model | dict(diffusion_kwargs=diffusion_kwargs), model_class=AutoregressiveDiffusion, **kwargs)


class ImageAutoregressiveFlow(ImageAutoregressive):
    """Images by `AutoregressiveFlow`. Arguments as of `ImageAutoregressive`."""

    def __init__(self, **kwargs):
        super().__init__(model_class=AutoregressiveFlow, **kwargs)


def draw_images(model: ImageAutoregressive, count: int, *, batch_size: int, seed: int, **kwargs) -> Tensor:
    """Draws `count` images, `batch_size` at a time so that memory does not limit their number, onto the CPU.

    The same seed and batch size give the same images. Further arguments go to `sample`.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    return torch.cat([model.sample(size, generator=generator, **kwargs).cpu() for size in sizes])
