"""Guidance: a denoised token is moved away from the prediction under another condition.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (https://arxiv.org/abs/2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..utils.validation import as_tensor, check_choice

TARGETS = ("tokens", "conditions")
MAX_NORM = 1.25  # of a guided token, in norms of a typical token


class Guidance(NamedTuple):
    """One entry of the list of guidances that a head takes; it applies them in their order.

    Attributes:
        z: the other condition (… dim), or one for all (dim).
        scale: 0 for the other condition alone, 1 for no guidance, above 1 to move away from the
            other condition; a number or (…).
        interval: guide at sigmas above the first and up to the second number (Kynkäänniemi et al.
            2024, https://arxiv.org/abs/2404.07724). Sigma is the std of the noise over the scale
            of the signal.
        target: what is moved: "tokens", the head's predictions, or "conditions", the conditions
            themselves, before the head reads them (as in the code of Shao et al. 2025,
            https://arxiv.org/abs/2505.07812): at the cost of no evaluation, and at all sigmas.
    """

    z: Tensor
    scale: Tensor | float
    interval: tuple[float, float] = (0.0, inf)
    target: Literal["tokens", "conditions"] = "tokens"


def mix_conditions(z: Tensor, guidance: Sequence[Guidance]) -> tuple[Tensor, list[Guidance]]:
    """A condition (… dim) after the guidances of conditions, in their order, and the others."""
    guidance = [Guidance(*entry) for entry in guidance]
    for entry in guidance:
        check_guidance_target(entry.target, check_guidance_interval(entry.interval))
        if entry.target == "conditions":
            scale = check_guidance_scale(entry.scale).to(z.device, z.dtype)
            z = torch.lerp(entry.z.expand_as(z), z, scale.unsqueeze(-1))
    return z, [entry for entry in guidance if entry.target == "tokens"]


def guide(conditional: Tensor, other: Tensor, scale: Tensor, sigma_data: float) -> Tensor:
    """other + scale · (conditional - other) (… d), of bounded norm.

    Ho & Salimans 2022, eq. 6, whose w is `scale - 1`; exact at scales 0 and 1. The norm is at most
    the largest of those of the two predictions and of `MAX_NORM` typical tokens: the transformer
    reads the token again and guides the next one further along, so that without a bound the norm
    grows along the sequence. Lin et al. 2023 (https://arxiv.org/abs/2305.08891, section 3.4)
    rescale guided predictions too.

    Args:
        sigma_data: std of the tokens' entries: the norm of a typical token, of mean 0, is sqrt(d)
            times that.
    """
    guided = torch.lerp(other, conditional, scale)
    norm, *norms = (token.norm(dim=-1, keepdim=True) for token in (guided, conditional, other))
    typical = sigma_data * sqrt(guided.shape[-1])
    largest = torch.maximum(*norms).clamp(min=MAX_NORM * typical)
    return guided * (largest / norm).clamp(max=1)


def check_guidance_scale(
    scale: float | Sequence[float] | Tensor, name: str = "guidance_scale"
) -> Tensor:
    """A scale as a tensor in single precision."""
    tensor = as_tensor(name, scale).float()
    if not (tensor.isfinite().all() and (tensor >= 0).all()):
        raise ValueError(f"{name} must be at least 0 and finite, got {scale}")
    return tensor


def check_guidance_interval(interval: tuple[float, float] | None) -> tuple[float, float]:
    """Two sigmas; None for all of them."""
    if interval is None:
        return 0.0, inf
    pair = tuple(interval) if isinstance(interval, (tuple, list)) else ()
    if len(pair) != 2 or not 0 <= pair[0] < pair[1] <= inf:
        raise ValueError(
            f"guidance_interval must be two noise levels 0 <= low < high, got {interval}"
        )
    return pair


def check_context_guidance(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"context_guidance must be one number, got {scale!r}")
    return float(check_guidance_scale(scale, "context_guidance"))


def check_guidance_target(target: str, interval: tuple[float, float]) -> str:
    check_choice("guidance_target", target, TARGETS)
    if target == "conditions" and interval != (0.0, inf):
        raise ValueError(
            "guidance_interval needs guidance_target = 'tokens': conditions are moved at all "
            f"sigmas, got {interval}"
        )
    return target
