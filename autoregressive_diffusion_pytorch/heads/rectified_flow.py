"""The rectified-flow head: straight paths from noise to data.

"Flow Straight and Fast", Liu et al. 2022 (https://arxiv.org/abs/2209.03003); "Scaling Rectified
Flow Transformers for High-Resolution Image Synthesis", Esser et al. 2024
(https://arxiv.org/abs/2403.03206).
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Literal

import torch
from torch import Tensor

from ..utils.validation import check_above_zero, check_choice
from .denoising import DenoisingHead, NoiseDraw
from .likelihood import FlowToNoise

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
MAX_LOG_SIGMA = log(500)  # of a likelihood, whose time follows ln(sigma) up to there


class RectifiedFlow(DenoisingHead):
    """A flow head: it learns the velocity of the path x_t = (1 - t) · noise + t · token.

    Time t runs from 0 (noise) to 1 (data), and sigma is (1 - t) / t. Esser et al. count the other
    way, so their location m is `-logit_mean` here.

    Args:
        model_output_clean: the network gives the clean token, from which the velocity follows,
            instead of the velocity itself. The token is preconditioned as in Karras et al. 2022: so
            this head differs from the diffusion head by its noise levels in training, their weight,
            and the time that the network reads.
        time_distribution: of the training times, "uniform" or "logit_normal" (Esser et al. 2024,
            eq. 19).
        logit_mean, logit_std: location and scale of the logit-normal distribution.

    Further arguments as of `DenoisingHead`.
    """

    def __init__(
        self,
        dim_token: int,
        dim_z: int,
        *,
        model_output_clean: bool = True,
        time_distribution: Literal["uniform", "logit_normal"] = "logit_normal",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        **kwargs,
    ):
        super().__init__(dim_token, dim_z, **kwargs)
        check_choice("time_distribution", time_distribution, TIME_DISTRIBUTIONS)
        check_above_zero(logit_std=logit_std)
        self.model_output_clean = model_output_clean
        self.time_distribution = time_distribution
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    def output(self, x, alpha, sigma, modulation, sigma_data) -> Tensor:
        if self.model_output_clean:
            return super().output(x, alpha, sigma, modulation, sigma_data)
        # the network gives the velocity: F is what the preconditioning leaves of it
        velocity = self.net.denoise(x, modulation).to(x.dtype)
        std = self.std(alpha, sigma, sigma_data)
        return (velocity - (alpha * sigma_data**2 - sigma) / std**2 * x) * std / sigma_data

    def draw_times(self, like: Tensor) -> Tensor:
        """Training times in (0, 1), of the shape of `like`."""
        if self.time_distribution == "uniform":
            return torch.rand_like(like)
        return torch.sigmoid(self.logit_mean + self.logit_std * torch.randn_like(like))

    def draw_noise_levels(self, like: Tensor, sigma_data: Tensor | float) -> NoiseDraw:
        times = self.draw_times(like)
        # Liu et al. 2022, eq. 1: the squared error of the velocity, (sigma_data / std)² that of F
        weight = (sigma_data / self.std(times, 1 - times, sigma_data)) ** 2
        return NoiseDraw(times, 1 - times, times, weight)

    def alpha(self, sigma: float) -> float:
        return 1 / (1 + sigma)

    def network_time(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        # the time is a sigmoid, stretched to reach 0 and 1: as even in ln(sigma) as that can be,
        # for near the tokens their finest details decide
        edge, sigma_data = 1 / (1 + exp(MAX_LOG_SIGMA)), self.scale

        def velocity(x: Tensor, log_sigma: Tensor) -> Tensor:
            share = torch.sigmoid(-log_sigma)
            time = ((share - edge) / (1 - 2 * edge)).clamp(0, 1)
            velocity = self.velocity(x, time, modulate(time), sigma_data)
            return -share * (1 - share) / (1 - 2 * edge) * velocity

        return FlowToNoise(
            velocity, start=-MAX_LOG_SIGMA, stop=MAX_LOG_SIGMA, scale=1.0, noise_std=1.0
        )
