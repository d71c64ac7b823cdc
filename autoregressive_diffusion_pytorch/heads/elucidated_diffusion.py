"""The EDM head: "Elucidating the Design Space of Diffusion-Based Generative Models".

Karras et al. 2022 (https://arxiv.org/abs/2206.00364); equations, tables and algorithms below are
numbered as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..utils.validation import check_above_zero
from .denoising import DenoisingHead, NoiseDraw
from .likelihood import FlowToNoise


class ElucidatedDiffusion(DenoisingHead):
    """A diffusion head: it learns to denoise token + sigma · noise.

    Args:
        P_mean, P_std: mean and std of ln(sigma) in training. The mean is that of Karras et al. 2024
            for latents (https://arxiv.org/abs/2312.02696): with the -1.2 of 2022, for whole images,
            patches of images get worse.
        sigma_min, sigma_max: of the likelihood alone: its equation is integrated between them, from
            tokens that are treated as noised by `sigma_min` already. The sampler has a schedule of
            its own, `karras_schedule`.

    Further arguments as of `DenoisingHead`.
    """

    def __init__(
        self,
        dim_token: int,
        dim_z: int,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        P_mean: float = -0.4,
        P_std: float = 1.2,
        **kwargs,
    ):
        super().__init__(dim_token, dim_z, **kwargs)
        if not 0 < sigma_min < sigma_max:
            raise ValueError(
                "sigma_min and sigma_max must be 0 < sigma_min < sigma_max, "
                f"got {sigma_min} and {sigma_max}"
            )
        check_above_zero(P_std=P_std)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.P_mean = P_mean
        self.P_std = P_std

    def draw_noise_levels(self, like: Tensor, sigma_data: Tensor | float) -> NoiseDraw:
        # Table 1, "Noise distribution"; its "Loss weighting" of the denoised token is 1 / c_out²,
        # and so 1 of F
        ln_sigma = self.P_mean + self.P_std * torch.randn_like(like)
        return NoiseDraw(alpha=1.0, sigma=ln_sigma.exp(), time=ln_sigma / 4, weight=1.0)

    def alpha(self, sigma: float) -> float:
        return 1.0

    def network_time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4  # c_noise of Table 1

    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        # eq. 1 with eqs. 3 and 7, for y = c_in · x by ln(sigma): there all that the preconditioning
        # adds cancels, and y is of unit variance all along
        sigma_data = self.scale

        def velocity(y: Tensor, ln_sigma: Tensor) -> Tensor:
            sigma = ln_sigma.exp()
            std = self.std(1.0, sigma, sigma_data)
            output = self.output(std * y, 1.0, sigma, modulate(ln_sigma / 4), sigma_data)
            return -sigma * sigma_data / std**2 * output

        return FlowToNoise(
            velocity,
            start=math.log(self.sigma_min),
            stop=math.log(self.sigma_max),
            scale=1 / self.std(1.0, self.sigma_min, sigma_data),
            noise_std=self.sigma_max / self.std(1.0, self.sigma_max, sigma_data),
        )
