"""Tokens to unit scale, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from ..utils.measured import MeasuredModule
from ..utils.validation import as_tensor, check_above_zero, check_known

Normalize = bool | dict[str, Any]


class Normalization(Module):
    """What a model does with its tokens (… d) before it learns them; this one nothing."""

    has_density = True  # tokens have a log-density

    @property
    def argument(self) -> Normalize:
        """What `normalization_of` makes such a module of."""
        return False

    def measure(self, tokens: Tensor) -> None:
        """Estimates what it must know of the data from tokens (m d)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens

    def inverse(self, tokens: Tensor) -> Tensor:
        """Normalised tokens as those of the data."""
        return tokens

    def constrain(self, tokens: Tensor) -> Tensor:
        """Normalised tokens that a head has drawn, where tokens can be."""
        return tokens

    def log_volume(self) -> Tensor | float:
        """The log of the volume of data over that of normalised tokens, in nats per token.

        The log-density of data is that of the normalised tokens less this.
        """
        return 0.0


class Standardization(Normalization, MeasuredModule):
    """Each channel to mean 0 and standard deviation 1.

    Args:
        dim: width d of a token.
        mean, scale: of each channel, (d,), or one number for all; None to measure both.
    """

    measured_buffers = ("mean", "scale")

    def __init__(
        self,
        dim: int,
        mean: Sequence[float] | float | None = None,
        scale: Sequence[float] | float | None = None,
    ):
        super().__init__()
        if (mean is None) != (scale is None):
            raise ValueError("normalize must hold both mean and scale, or neither to measure them")
        self.is_given = mean is not None
        for name, value in (("mean", mean), ("scale", scale)):
            value = as_tensor(f"normalize[{name!r}]", math.nan if value is None else value)
            value = value.detach().float()
            if value.shape not in ((), (dim,)) or (self.is_given and not value.isfinite().all()):
                raise ValueError(
                    f"normalize[{name!r}] must be one finite number, or {dim}, one for each "
                    f"channel, got {value.tolist()}"
                )
            self.register_buffer(name, value.expand(dim).clone())
        if (self.scale <= 0).any():
            raise ValueError(f"normalize['scale'] must be above 0, got {scale}")

    @property
    def argument(self) -> Normalize:
        if not self.is_given:
            return True
        return dict(mean=self.mean.tolist(), scale=self.scale.tolist())

    @torch.no_grad()
    def measure(self, tokens: Tensor) -> None:
        """Takes mean and standard deviation of tokens (m d), m at least 2, unless they are known.

        A channel that never varies is only moved.
        """
        if self.is_measured or len(tokens) < 2:
            return
        std, mean = torch.std_mean(tokens.double(), dim=0)
        if mean.isfinite().all() and std.isfinite().all():
            self.mean.copy_(mean)
            self.scale.copy_(torch.where(std > 0, std, 1))
            self._is_measured = True

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) / self.scale if self.is_measured else tokens

    def inverse(self, tokens: Tensor) -> Tensor:
        return tokens * self.scale + self.mean if self.is_measured else tokens

    def log_volume(self) -> Tensor | float:
        return self.scale.log().sum() if self.is_measured else 0.0


class Sphere(Normalization):
    """Tokens on a sphere, and drawn ones projected to it, guided or not.

    Ke & Xue 2025, "Hyperspherical Latents Improve Continuous-Token Autoregressive Generation"
    (https://arxiv.org/abs/2509.24335). Normalised tokens have the radius sqrt(d).

    Args:
        dim: width d of a token.
        radius: of the sphere of the data.
    """

    has_density = False

    def __init__(self, dim: int, radius: float):
        super().__init__()
        check_above_zero(**{"normalize['radius']": radius})
        self.unit, self.radius = math.sqrt(dim), radius

    @property
    def argument(self) -> Normalize:
        return dict(radius=self.radius)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.constrain(tokens)

    def inverse(self, tokens: Tensor) -> Tensor:
        return tokens * (self.radius / self.unit)

    def constrain(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * self.unit


def normalization_of(dim: int, normalize: Normalize) -> Normalization:
    """The module of a model's argument `normalize`.

    Raises:
        ValueError, TypeError: it is none that there is.
    """
    if isinstance(normalize, bool):
        return Standardization(dim) if normalize else Normalization()
    if not isinstance(normalize, dict) or not normalize:
        raise TypeError(
            "normalize must be True, False, dict(mean=…, scale=…) or dict(radius=…), "
            f"got {normalize!r}"
        )
    check_known("normalize: dict", normalize, ("mean", "scale", "radius"))
    if "radius" in normalize:
        if len(normalize) > 1:
            raise ValueError("normalize must hold a radius, or mean and scale, got both")
        return Sphere(dim, **normalize)
    return Standardization(dim, **normalize)
