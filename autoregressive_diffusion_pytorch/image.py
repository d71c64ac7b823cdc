"""Images as sequences of tokens: patches in raster order, values between [0, 1] and [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Generator, Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.autoregressive import (
    Autoregressive,
    AutoregressiveDiffusion,
    AutoregressiveFlow,
    without_sampling_of_1_0,
)
from autoregressive_diffusion_pytorch.checks import as_height_and_width, as_tensor, check_positive_int
from autoregressive_diffusion_pytorch.generation import GenerationSettings
from autoregressive_diffusion_pytorch.pretrained import Pretrained
from autoregressive_diffusion_pytorch.processes import map_over_processes

CONTEXT_DROP_PROB = 0.1  # share of the tokens that image models learn without context, by default
VALUE_INTERVAL = 2 / 255  # between neighbouring 8-bit values, in the range of tokens


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
        num_classes: number of labels to tell it what to draw, none by default.
        dim_cond: width of vectors to tell it what to draw, none by default.
        model: arguments of the sequence model, but for `dim_input` and `max_seq_len`, which follow from the sizes. By default it
            learns some tokens without context, `CONTEXT_DROP_PROB` of them, so that it can be drawn from with context guidance; and
            its head clamps drawn tokens to the range of images, so that the transformer reads what the user sees.
    """

    model_class: type[Autoregressive]  # of the sequence model

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int = 3,
        train_max_noise: float = 0.0,
        num_classes: int | None = None,
        dim_cond: int | None = None,
        model: dict,
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
        for name in ("num_classes", "dim_cond"):
            if name in model:
                raise ValueError(f"model must not hold {name!r}: it is an argument of the image model itself")
        self.channels = channels
        self.train_max_noise = train_max_noise
        self.num_classes = num_classes
        self.dim_cond = dim_cond

        rows, columns = (image // patch for image, patch in zip(self.image_size, self.patch_size, strict=True))
        dim_input = channels * self.patch_size[0] * self.patch_size[1]
        sizes = dict(dim_input=dim_input, max_seq_len=(rows, columns))
        head_kwargs = dict(clamp_during_sampling=True) | (model.get(self.model_class.head_argument) or {})
        model = dict(context_drop_prob=CONTEXT_DROP_PROB) | model | {self.model_class.head_argument: head_kwargs}
        self.model = self.model_class(**model, **sizes, num_classes=num_classes, dim_cond=dim_cond)

    @classmethod
    def _from_pretrained(cls, *, model: dict, **kwargs):
        model = without_sampling_of_1_0(model, cls.model_class.head_argument)
        # a saved model names all its arguments: one that does not name this learned nothing without context
        return super()._from_pretrained(model=dict(context_drop_prob=0.0) | model, **kwargs)

    @property
    def generation(self) -> GenerationSettings:
        """How it draws unless `sample` is told otherwise."""
        return self.model.generation

    @generation.setter
    def generation(self, settings: GenerationSettings) -> None:
        self.model.generation = settings

    def checkpoint_gradients(self) -> None:
        """As of `Autoregressive`."""
        self.model.checkpoint_gradients()

    def _resolved_arguments(self) -> dict:
        derived = ("dim_input", "max_seq_len", "num_classes", "dim_cond")
        return dict(model={name: value for name, value in self.model.config.items() if name not in derived})

    def measure(self, images: Tensor) -> None:
        """Takes the standard deviation of images (b c h w) in [0, 1] for the head's `sigma_data`, unless it is known."""
        self.check_images(images)
        self.model.head.measure(images * 2 - 1)

    def forward(
        self,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The loss of images (b c h w) with values in [0, 1]; with `loss_reduction = "none"` one for each patch, (b n).

        `labels`, `cond` and `cond_mask` as of `Autoregressive.forward`.
        """
        self.check_images(images)
        tokens = patchify(images * 2 - 1, self.patch_size)
        noised = None
        if self.training and self.train_max_noise > 0:
            share = self.train_max_noise * torch.rand(len(tokens), 1, 1, device=tokens.device, dtype=tokens.dtype)
            noised = tokens.lerp(torch.randn_like(tokens), share)
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        return self.model(tokens, **conditions, noised_seq=noised, loss_reduction=loss_reduction)

    def log_prob(
        self,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        generator: Generator | None = None,
        **solver_kwargs,
    ) -> Tensor:
        """The log-probability in nats of each patch of 8-bit images given those before it, (b n).

        The model has a density, an image whole numbers from 0 to 255. Each value is moved by even noise within the interval that is
        rounded to it. The log-density there, with the size of the interval, is on average over the noise a lower bound of the
        image's log-probability, summed over its patches (Theis et al. 2016, eq. 4, https://arxiv.org/abs/1511.01844). Training
        sees the whole numbers themselves: a model that has learned that there is nothing between them finds what lies there
        improbable.

        Args:
            images: (b c h w) with values in [0, 1], which are rounded to multiples of 1 / 255.
            labels, cond, cond_mask: as of `forward`.
            generator: source of this noise and of that of the solver, on any device; by default torch's global one.
            solver_kwargs: how to integrate, as of `Head.log_prob`.
        """
        self.check_images(images)
        if len(images) == 0:
            raise ValueError("images must be at least one, got none")
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"images must have values in [0, 1], got {images.min():g} to {images.max():g}")
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        source = images.device if generator is None else generator.device
        noise = torch.rand(images.shape, generator=generator, device=source, dtype=images.dtype).to(images.device)
        tokens = patchify(((images * 255).round() + noise - 0.5) * VALUE_INTERVAL - 1, self.patch_size)
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        log_densities = self.model.log_prob(tokens, **conditions, generator=generator, **solver_kwargs)
        return log_densities + tokens.shape[-1] * math.log(VALUE_INTERVAL)

    def bits_per_dim(self, images: Tensor, **kwargs) -> Tensor:
        """The bits for each value of images (b c h w) that a code by the model takes, (b): less is better, 8 is the images' own.

        On average over the noise an upper bound. Arguments as of `log_prob`.
        """
        return -self.log_prob(images, **kwargs).sum(dim=-1) / (images[0].numel() * math.log(2))

    def sample(self, batch_size: int = 1, *, progress: bool = False, **kwargs) -> Tensor:
        """Draws images (b c h w) with values in [0, 1].

        Arguments as of `Autoregressive.sample`, but for `prompt` and `seq_len`: `labels`, `cond`, `cond_mask`, `guidance_scale`,
        `guidance_schedule`, `guidance_interval`, `context_guidance`, `precision`, `compile`, `num_steps`, `solver`, `temperature`,
        `generator`.
        """
        return self._to_images(self.model.sample(batch_size, None, seq_len=None, progress=progress, **kwargs))

    def stream(self, batch_size: int = 1, **kwargs) -> Iterator[Tensor]:
        """The images of `sample`, (b c h w), after each patch; grey where nothing is drawn yet.

        Arguments as of `sample`, but for `progress`.
        """
        return self._grow(self.model.stream(batch_size, None, seq_len=None, **kwargs))

    def complete(
        self,
        images: Tensor,
        keep_rows: int,
        *,
        num_completions: int = 1,
        labels: Tensor | Sequence[int] | int | None = None,
        cond: Tensor | None = None,
        progress: bool = False,
        **kwargs,
    ) -> Tensor:
        """Draws anew what lies below the first rows of images.

        Args:
            images: (b c h w) with values in [0, 1]; one serves several labels or vectors.
            keep_rows: rows of pixels to keep, from 0 to the height, a multiple of the patch height. They come back untouched.
            num_completions: of each image with its label and vectors, one after the other; they share the work of reading it.
            labels, cond: as of `sample`, one for all images or one for each.

        Further arguments as of `sample`.

        Returns:
            Images (b · num_completions, c h w).
        """
        conditions = dict(labels=labels, cond=cond)
        self.check_images(images)
        check_positive_int(num_completions=num_completions)
        height, patch = self.image_size[0], self.patch_size[0]
        if type(keep_rows) is not int or not 0 <= keep_rows <= height or keep_rows % patch:
            raise ValueError(f"keep_rows must be a multiple of the patch height {patch} from 0 to {height}, got {keep_rows!r}")
        given = [torch.atleast_1d(as_tensor(name, value)) for name, value in conditions.items() if value is not None]
        contexts = max(map(len, (images, *given)))
        if len(images) not in (1, contexts):
            raise ValueError(f"images must be one or {contexts}, as many as labels or vectors, got {len(images)}")
        kept = images[:, :, :keep_rows].detach()
        prompt = patchify(kept * 2 - 1, self.patch_size)
        batch_size = contexts * num_completions
        tokens = self.model.sample(batch_size, prompt, **conditions, seq_len=None, progress=progress, **kwargs)
        completed = self._to_images(tokens)
        # as they were: to tokens and back is not exact
        completed[:, :, :keep_rows] = kept.repeat_interleave(len(completed) // len(kept), dim=0)
        return completed

    def check_images(self, images: Tensor) -> None:
        """Whether images are of the kind and the shape that the model is for."""
        shape = (self.channels, *self.image_size)
        if not images.is_floating_point():
            raise TypeError(f"images must be real numbers in [0, 1], got {images.dtype}: divide 8-bit values by 255")
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(f"images must be of shape (b {shape[0]} {shape[1]} {shape[2]}), got {tuple(images.shape)}")

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
    """Images by `AutoregressiveDiffusion`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveDiffusion


class ImageAutoregressiveFlow(ImageAutoregressive):
    """Images by `AutoregressiveFlow`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveFlow


def draw_images(
    model: ImageAutoregressive, count: int, *, batch_size: int, seed: int, labels: Tensor | None = None, **kwargs
) -> Tensor:
    """Draws `count` images, `batch_size` at a time so that memory does not limit their number, onto the CPU.

    The same seed and batch size give the same images. The processes of a distributed run share the batches, and all get all images:
    the same as one process would draw.

    Args:
        labels: (count,), of a model with classes.

    Further arguments go to `sample`.
    """

    def draw(start: int) -> Tensor:
        return draw_batch(model, start, min(start + batch_size, count), seed=seed, labels=labels, **kwargs)

    return torch.cat(map_over_processes(draw, range(0, count, batch_size)))


def draw_batch(model: ImageAutoregressive, start: int, stop: int, *, seed: int, labels: Tensor | None = None, **kwargs) -> Tensor:
    """The images from `start` to `stop` of `draw_images`, whose batch they are."""
    part = None if labels is None else labels[start:stop]
    generator = batch_generator(seed, start, next(model.parameters()).device)
    return model.sample(stop - start, labels=part, generator=generator, **kwargs).cpu()


def batch_generator(seed: int, start: int, device: torch.device) -> Generator:
    """The source of randomness of the batch of images that begins with number `start`."""
    return Generator(device).manual_seed(int(np.random.SeedSequence((seed, start)).generate_state(1, np.uint64)[0]))
