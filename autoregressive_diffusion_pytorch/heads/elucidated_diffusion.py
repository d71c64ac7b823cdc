"""The EDM head: "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022.

https://arxiv.org/abs/2206.00364; equations, tables and algorithms below are numbered as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.checks import check_above_zero
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads.denoising import DenoisingHead, NoiseDraw
from autoregressive_diffusion_pytorch.likelihood import FlowToNoise


class ElucidatedDiffusion(DenoisingHead):
    """A diffusion head: it learns to denoise `token + sigma · noise`.

    Args:
        P_mean, P_std: mean and standard deviation of ln(sigma) in training. The mean is that of Karras et al. 2024 for latents
            (https://arxiv.org/abs/2312.02696): with the -1.2 of 2022, for whole images, patches of images get worse.
        sigma_min, sigma_max: the noise levels that the likelihood reaches from and to: a token counts as one with noise of the
            lowest, as the network knows no lower one. The sampler has levels of its own (`karras_schedule`).

    Further arguments as of `DenoisingHead`.
    """

    def __init__(
        self,
        net: MLP,
        *,
        solver: Literal["dpmpp_2m", "euler", "heun"] | None = None,
        num_sample_steps: int | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float | None = None,
        rho: float = 7.0,
        P_mean: float = -0.4,
        P_std: float = 1.2,
        S_churn: float = 0.0,
        S_tmin: float = 0.05,
        S_tmax: float = 50.0,
        S_noise: float = 1.003,
        clamp_during_sampling: bool = False,
        num_noise_draws: int = 1,
    ):
        super().__init__(
            net,
            solver=solver,
            num_sample_steps=num_sample_steps,
            sigma_data=sigma_data,
            rho=rho,
            S_churn=S_churn,
            S_tmin=S_tmin,
            S_tmax=S_tmax,
            S_noise=S_noise,
            clamp_during_sampling=clamp_during_sampling,
            num_noise_draws=num_noise_draws,
        )
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min and sigma_max must be 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        check_above_zero(P_std=P_std)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.P_mean = P_mean
        self.P_std = P_std

    def draw_noise_levels(self, like: Tensor, sigma_data: Tensor | float) -> NoiseDraw:
        # Table 1, "Noise distribution"; its "Loss weighting" of the denoised token is 1 / c_out², and so 1 of F
        ln_sigma = self.P_mean + self.P_std * torch.randn_like(like)
        return NoiseDraw(alpha=1.0, sigma=ln_sigma.exp(), time=ln_sigma / 4, weight=1.0)

    def alpha(self, sigma: float) -> float:
        return 1.0

    def network_time(self, sigma: float) -> float:
        return math.log(sigma) / 4  # c_noise of Table 1

    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        # eq. 1 with eqs. 3 and 7, for y = c_in · x by ln(sigma): there all that the preconditioning adds cancels, and y is of unit
        # variance all along
        sigma_data = self.scale

        def velocity(y: Tensor, ln_sigma: Tensor) -> Tensor:
            sigma = ln_sigma.exp()
            std = self.std(1.0, sigma, sigma_data)
            return -sigma * sigma_data / std**2 * self.output(std * y, 1.0, sigma, modulate(ln_sigma / 4), sigma_data)

        return FlowToNoise(
            velocity,
            start=math.log(self.sigma_min),
            stop=math.log(self.sigma_max),
            scale=1 / self.std(1.0, self.sigma_min, sigma_data),
            noise_std=self.sigma_max / self.std(1.0, self.sigma_max, sigma_data),
        )
