"""Checks of arguments that several rooms share: each raises an error that names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_positive_int(**values: int) -> None:
    for name, value in values.items():
        if not _is_positive_int(value):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")


def check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def as_tensor(name: str, value: Any) -> Tensor:
    """`value` as a tensor, from a number or sequences of them."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor, or numbers that make one, got {value!r}") from error


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
        raise ValueError(f"{name} must be a whole number of at least 1, or (height, width), got {size!r}")
    return pair


def _is_positive_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
