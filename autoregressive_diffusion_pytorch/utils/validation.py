"""Checks of arguments: each error names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Generator, Tensor


def check_positive_int(**values: int) -> None:
    for name, value in values.items():
        if not _is_positive_int(value):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_int(name: str, value: int, lowest: int, highest: float) -> None:
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, got {value!r}")


def check_above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")


def check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_known(function: str, names, known) -> None:
    """Whether a function knows the arguments of these names; the error says which is meant."""
    for name in names:
        if name not in known:
            # half the letters of "guidance" are those of "guidance_scale"
            nearest = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(known)}"
            raise TypeError(f"{function}() got an unexpected argument {name!r}: {hint}")


def check_generator(
    generator: Generator | Sequence[Generator] | None, count: int | None = None
) -> None:
    """Whether it is a generator or None; with a `count`, or one for each of as many samples."""
    if generator is None:
        return
    several = count is not None and isinstance(generator, Sequence)
    if not all(isinstance(one, Generator) for one in (generator if several else [generator])):
        kind = "a torch.Generator, such as torch.Generator().manual_seed(0)"
        kind = kind if count is None else f"{kind}, or one per sample"
        raise TypeError(f"generator must be {kind}, got {generator!r}")
    if several and len(generator) != count:
        raise ValueError(
            f"generator must be one, or {count} for as many samples, got {len(generator)}"
        )


def as_tensor(name: str, value: Any) -> Tensor:
    """`value` as a tensor, from a number or sequences of them."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{name} must be a tensor, or numbers that make one, got {value!r}"
        raise TypeError(message) from error


def as_mask(name: str, value: Any, meaning: str) -> Tensor:
    """`value` as a tensor of booleans."""
    mask = as_tensor(name, value)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must hold booleans, True for {meaning}, got {mask.dtype}")
    return mask


def as_whole_numbers(name: str, value: Any, lowest: int, highest: int) -> Tensor:
    """`value` as a tensor of 64-bit whole numbers from `lowest` to `highest`."""
    tensor = as_tensor(name, value)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {tensor.dtype}")
    tensor = tensor.long()  # first: the bounds need not fit in fewer bits
    wrong = tensor[(tensor < lowest) | (tensor > highest)]
    if len(wrong):
        raise ValueError(f"{name} must be from {lowest} to {highest}, got {int(wrong[0])}")
    return tensor


def as_height_and_width(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """`size` as (height, width), from one number for a square."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(map(_is_positive_int, pair)):
        raise ValueError(
            f"{name} must be a whole number of at least 1, or (height, width), got {size!r}"
        )
    return pair


def as_token_mask(
    seq: Tensor, lens: Tensor | Sequence[int] | None, mask: Tensor | None
) -> Tensor | None:
    """The mask (b n) of tokens of sequences (b n d), given as lengths or as such a mask."""
    batch_size, length = seq.shape[:2]
    if lens is not None and mask is not None:
        raise ValueError("lens and mask say the same: expected one of them, got both")
    if lens is not None:
        lens = as_whole_numbers("lens", lens, 1, length).to(seq.device)
        if lens.shape != (batch_size,):
            raise ValueError(f"lens must be of shape ({batch_size},), got {tuple(lens.shape)}")
        return torch.arange(length, device=seq.device) < lens.unsqueeze(1)
    if mask is not None:
        mask = as_mask("mask", mask, "tokens")
        if mask.shape != (batch_size, length):
            raise ValueError(
                f"mask must be of shape ({batch_size}, {length}), got {tuple(mask.shape)}"
            )
        mask = mask.to(seq.device)
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "mask must be True for the first tokens of each sequence, at least one, and False "
                "for the padding after them"
            )
    return mask


def _is_positive_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
