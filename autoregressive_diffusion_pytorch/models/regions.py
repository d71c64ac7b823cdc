"""Regions: tokens, or pixels, that are drawn anew around what is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module

from ..utils.validation import as_mask, as_tensor, check_positive_int
from .generation import Generation
from .orders import repeated
from .readings import take
from .tokenizers import Tokenizer, patchify, unpatchify


class Regions:
    """One call of `SequenceModel.fill`: a `Generation` for each number of tokens to draw.

    Arguments as of `fill`.
    """

    def __init__(
        self,
        model: Module,
        seq: Tensor,
        mask: Tensor,
        num_completions: int,
        options: dict[str, Any],
    ):
        if not model.draws_any_order:
            raise TypeError(
                "regions can be filled by models that draw in any order: MaskedAutoregressive, and "
                'Autoregressive with order="random"; this one was made with order="raster", and '
                "goes on from a prompt"
            )
        check_positive_int(num_completions=num_completions)
        mask = as_mask("mask", mask, "tokens to draw").to(seq.device)
        if mask.shape not in (seq.shape[:2], seq.shape[1:2]):
            raise ValueError(
                f"mask must be of shape {tuple(seq.shape[:2])} or {tuple(seq.shape[1:2])}, "
                f"got {tuple(mask.shape)}"
            )
        mask = mask.expand(seq.shape[:2])
        numbers = mask.sum(dim=1)
        self.count, self.num_completions = len(seq), num_completions
        self.parts: list[tuple[Tensor, Generation]] = []
        for number in numbers.unique():
            rows = (numbers == number).nonzero().squeeze(1)
            known = (~mask[rows]).nonzero()[:, 1].view(len(rows), -1)
            own = options if len(rows) == len(seq) else self._own_options(options, rows)
            size = num_completions * len(rows)
            prompt = dict(prompt=take(seq[rows], known), known=known, seq_len=seq.shape[1])
            # one sequence serves several labels, vectors and scales
            size = None if size == 1 else size
            self.parts.append((rows, Generation(model, size, own, **prompt)))

    def _own_options(self, options: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """The options of some of the sequences, of what is given for each."""
        own = dict(options)
        for name in ("labels", "cond", "cond_mask", "guidance_scale", "generator"):
            given = own.get(name)
            if given is None or isinstance(given, Generator | int | float):
                continue
            each = self.num_completions if name in ("guidance_scale", "generator") else 1
            if len(given) == each * self.count:
                places = [each * row + i for row in rows.tolist() for i in range(each)]
                taken = [given[place] for place in places]
                own[name] = torch.stack(taken) if isinstance(given, Tensor) else taken
        return own

    def run(self, progress: bool) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0][1].run(progress)
        drawn = [part.run(progress) for _, part in self.parts]
        result = drawn[0].new_empty(self.count, self.num_completions, *drawn[0].shape[1:])
        for (rows, _), seq in zip(self.parts, drawn, strict=True):
            result[rows] = seq.unflatten(0, (len(rows), -1))
        return result.flatten(0, 1)

    def growing(self) -> Iterator[Tensor]:
        """As of `Generation`, if the mask marks as many tokens of each sequence."""
        if len(self.parts) > 1:
            numbers = sorted(part.order.length - part.prompt.shape[1] for _, part in self.parts)
            raise ValueError(
                "mask must mark as many tokens of each image for a stream, got "
                f"{' and '.join(map(str, numbers))}"
            )
        return self.parts[0][1].growing()


class PixelRegion:
    """The pixels of images that a mask marks, and the tokens to draw for them.

    Args:
        tokenizer: cuts images into tokens.
        images, mask, whole_patches: as of `ImageAutoregressive.fill`.
    """

    def __init__(self, tokenizer: Tokenizer, images: Tensor, mask: Tensor, whole_patches: bool):
        mask = as_mask("mask", mask, "pixels to draw").to(images.device)
        size = tuple(images.shape[-2:])
        if tuple(mask.shape) not in (size, (len(images), *size)):
            raise ValueError(
                f"mask must be of shape {size} or {(len(images), *size)}, got {tuple(mask.shape)}"
            )
        self.mask = mask.expand(len(images), *size).unsqueeze(1)
        self.kept = images.detach().masked_fill(self.mask, 0.5)
        tokenizer.check_range(self.kept)
        self.tokens = tokenizer.encode_known(self.kept, self.mask)
        self.drawn = patchify(self.mask, tokenizer.cell).any(dim=-1)
        if whole_patches:
            like = self.drawn.unsqueeze(-1).expand(-1, -1, math.prod(tokenizer.cell))
            self.mask = unpatchify(like, tokenizer.cell, size)

    def paste(self, filled: Tensor) -> Tensor:
        """Images with the pixels of the region from `filled`, and all others as they were."""
        mask, kept = (repeated(x, len(filled)) for x in (self.mask, self.kept))
        return torch.where(mask.to(filled.device), filled, kept.to(filled))


def fill_canvas(
    fill: Callable[..., Tensor], tokenizer: Tokenizer, images: Tensor, mask: Tensor, **options: Any
) -> Tensor:
    """Fills a region of images that are larger than a model's, window by window.

    Args:
        fill: of the model, for one window.
        images, mask, options: as of `fill`, the mask (h w).
    """
    mask = as_mask("mask", mask, "pixels to draw").to(images.device).clone()
    if mask.shape != images.shape[-2:]:
        raise ValueError(
            f"mask must be of shape {tuple(images.shape[-2:])} for images larger than those of the "
            f"model, got {tuple(mask.shape)}"
        )
    images = images.detach()
    windows = _windows(images.shape[-2:], tokenizer)
    while bool(mask.any()):
        # where most is known, of where something is left to draw
        left = [int(mask[window].sum()) for window in windows]
        window = windows[min((count, i) for i, count in enumerate(left) if count)[1]]
        filled = fill(images[(..., *window)], mask[window], **options)
        images = repeated(images, len(filled)).to(filled, copy=True)
        images[(..., *window)] = filled
        mask[window] = False
        # each completion goes on from its own
        options |= dict(num_completions=1)
        for name in ("labels", "cond", "cond_mask"):
            if options.get(name) is not None:
                given = torch.atleast_1d(as_tensor(name, options[name]))
                options[name] = repeated(given, len(filled))
    return images


def _windows(size: tuple[int, int], tokenizer: Tokenizer) -> list[tuple[slice, slice]]:
    """Windows over a canvas, each of which overlaps the next ones by half, in whole tokens."""
    axes = []
    for length, own, cell in zip(size, tokenizer.image_size, tokenizer.cell, strict=True):
        stride = max(own // (2 * cell), 1) * cell
        starts = (*range(0, length - own, stride), length - own)
        axes.append([slice(start, start + own) for start in starts])
    return list(product(*axes))


def number_of_completed(images: Tensor, options: dict[str, Any]) -> int:
    """How many images with their labels or vectors are completed; of one image there are some."""
    conditions = {name: options.get(name) for name in ("labels", "cond")}
    given = [as_tensor(name, v) for name, v in conditions.items() if v is not None]
    count = max(map(len, (images, *map(torch.atleast_1d, given))))
    if len(images) not in (1, count):
        raise ValueError(
            f"images must be one or {count}, as many as labels or vectors, got {len(images)}"
        )
    return count
