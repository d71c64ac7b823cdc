"""The rectified-flow head: straight paths from noise to data.

"Flow Straight and Fast", Liu et al. 2022 (https://arxiv.org/abs/2209.03003); "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", Esser et al. 2024 (https://arxiv.org/abs/2403.03206).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.checks import check_above_zero, check_choice
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.solvers import euler, midpoint, visited_times

SOLVERS = {"euler": euler, "midpoint": midpoint}
TIME_DISTRIBUTIONS = ("uniform", "logit_normal")


class RectifiedFlow(Head):
    """A flow head: the network learns the velocity of the straight path `x_t = (1 - t) · noise + t · token`.

    Time runs from 0 (noise) to 1 (data). Esser et al. count the other way, so their location m is `-logit_mean` here.

    Args:
        net: the denoiser.
        num_sample_steps: steps of the solver from time 0 to 1, evenly spaced.
        solver: "euler" (one evaluation of the network a step) or "midpoint" (two).
        model_output_clean: the network's output is the clean token, from which the velocity follows, instead of the velocity.
        eps: smallest `1 - t` by which the error of a clean token is divided to get the error of its velocity: it bounds the weight
            of times near 1 in the loss.
        time_distribution: of the training times, "uniform" or "logit_normal" (Esser et al. 2024, eq. 19).
        logit_mean, logit_std: location and scale of the logit-normal distribution.
        num_noise_draws: noise draws for each token and training step.
    """

    def __init__(
        self,
        net: MLP,
        *,
        num_sample_steps: int = 16,
        solver: Literal["euler", "midpoint"] = "midpoint",
        model_output_clean: bool = True,
        eps: float = 5e-2,
        time_distribution: Literal["uniform", "logit_normal"] = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        num_noise_draws: int = 1,
    ):
        super().__init__(net, num_sample_steps=num_sample_steps, num_noise_draws=num_noise_draws)
        check_choice("solver", solver, SOLVERS)
        check_choice("time_distribution", time_distribution, TIME_DISTRIBUTIONS)
        check_above_zero(eps=eps, logit_std=logit_std)

        self.solver = solver
        self.model_output_clean = model_output_clean
        self.eps = eps
        self.time_distribution = time_distribution
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    def velocity(self, noised: Tensor, times: float, modulation: Tensor) -> Tensor:
        """The velocity dx/dt at `noised` (… d) and a time below 1."""
        output = self.net.denoise(noised, modulation).to(noised.dtype)
        if not self.model_output_clean:
            return output
        # the path is straight: x_1 - x_0 = (x_1 - x_t) / (1 - t)
        return (output - noised) / (1 - times)

    def draw_times(self, like: Tensor) -> Tensor:
        """Training times in (0, 1), of the shape of `like`."""
        if self.time_distribution == "uniform":
            return torch.rand_like(like)
        return torch.sigmoid(self.logit_mean + self.logit_std * torch.randn_like(like))

    def losses(self, tokens: Tensor, cond: Tensor) -> Tensor:
        times = self.draw_times(tokens[..., 0])
        modulation = self.net.modulate(times, cond)
        times = times[..., None]
        noise = torch.randn_like(tokens)
        noised = noise.lerp(tokens, times)
        output = self.net.denoise(noised, modulation).to(tokens.dtype)
        # Liu et al. 2022, eq. 1: the velocity of the straight path is data minus noise everywhere on it
        if self.model_output_clean:
            errors = (output - tokens) / (1 - times).clamp(min=self.eps)
        else:
            errors = output - (tokens - noise)
        return errors.square().mean(dim=-1)

    def draw(self, cond: Tensor, num_steps: int, noise: Callable[[], Tensor]) -> Tensor:
        solver = partial(SOLVERS[self.solver], times=[i / num_steps for i in range(num_steps + 1)])
        times = torch.tensor(visited_times(solver), device=cond.device).view(-1, *(1 for _ in cond.shape[:-1]))
        modulations = iter(self.net.modulate(times, cond))
        return solver(lambda x, time: self.velocity(x, time, next(modulations)), noise())
