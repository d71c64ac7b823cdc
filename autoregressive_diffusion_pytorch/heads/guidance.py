"""Guidance: a denoised token is moved away from what the head says of another condition.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (https://arxiv.org/abs/2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.checks import as_tensor

LONGEST = 1.25  # of guided tokens, in lengths of a typical token


class Guidance(NamedTuple):
    """One entry of the list of guidances that a head takes; they are applied in their order.

    Attributes:
        z: the other condition (… dim), or one for all (dim).
        scale: 0 for the other condition alone, 1 for no guidance, more to move away from the other condition; a number or (…).
        interval: the noise levels, above the first and up to the second, at which to guide (Kynkäänniemi et al. 2024,
            https://arxiv.org/abs/2404.07724). A noise level, sigma, is the noise's standard deviation over the signal's scale.
    """

    z: Tensor
    scale: Tensor | float
    interval: tuple[float, float] = (0.0, inf)


def guide(conditional: Tensor, other: Tensor, scale: Tensor, sigma_data: float) -> Tensor:
    """other + scale · (conditional - other), at most as long as the longest of the two and of `LONGEST` typical tokens: (… d).

    Ho & Salimans 2022, eq. 6, whose w is `scale - 1`; exact at scales 0 and 1. A guided token is read by the transformer again,
    which the next token is guided further along: without a bound, sequences grow without one. Bounds on the length are known from
    Lin et al. 2023 (https://arxiv.org/abs/2305.08891, section 3.4); this one leaves alone what is not longer than tokens are.

    Args:
        sigma_data: the standard deviation of tokens' entries: a typical token, of mean 0, is sqrt(d) times as long.
    """
    guided = torch.lerp(other, conditional, scale)
    length, *lengths = (token.norm(dim=-1, keepdim=True) for token in (guided, conditional, other))
    longest = torch.maximum(*lengths).clamp(min=LONGEST * sigma_data * sqrt(guided.shape[-1]))
    return guided * (longest / length).clamp(max=1)


def check_guidance_scale(scale: float | Sequence[float] | Tensor, name: str = "guidance_scale") -> Tensor:
    """A scale as a tensor in single precision."""
    tensor = as_tensor(name, scale).float()
    if not (tensor.isfinite().all() and (tensor >= 0).all()):
        raise ValueError(f"{name} must be at least 0 and finite, got {scale}")
    return tensor


def check_guidance_interval(interval: tuple[float, float] | None) -> tuple[float, float]:
    """Two noise levels; None for all of them."""
    if interval is None:
        return 0.0, inf
    pair = tuple(interval) if isinstance(interval, (tuple, list)) else ()
    if len(pair) != 2 or not 0 <= pair[0] < pair[1] <= inf:
        raise ValueError(f"guidance_interval must be two noise levels 0 <= low < high, got {interval}")
    return pair


def check_context_guidance(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"context_guidance must be one number, got {scale!r}")
    return float(check_guidance_scale(scale, "context_guidance"))
