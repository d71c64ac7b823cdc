"""The rectified-flow head: straight paths from noise to data.

"Flow Straight and Fast", Liu et al. 2022 (https://arxiv.org/abs/2209.03003); "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", Esser et al. 2024 (https://arxiv.org/abs/2403.03206).
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.checks import check_above_zero, check_choice
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.likelihood import FlowToNoise
from autoregressive_diffusion_pytorch.solvers import (
    Field,
    State,
    dpmpp_2m,
    euler,
    euler_maruyama,
    heun,
    midpoint,
    multistep_schedule,
)

ODE_SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun}
TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
# where the time of a likelihood begins to follow the logarithm of the noise level: Karras et al. 2022 sample from 1 / 500
LOG_NOISE_LEVEL = log(500)


class RectifiedFlow(Head):
    """A flow head: it learns the velocity of the straight path `x_t = (1 - t) · noise + t · token`.

    Time runs from 0 (noise) to 1 (data). Esser et al. count the other way, so their location m is `-logit_mean` here.

    Args:
        net: the denoiser.
        solver: "dpmpp_2m" or "euler" (one evaluation of the network a step), "midpoint" or "heun" (two), or "euler_maruyama" (one,
            with fresh noise at each step).
        num_sample_steps: steps of the solver from time 0 to 1; or a dictionary with those of solvers by name. Those of all others
            are in `NUM_SAMPLE_STEPS`. The times are even, but those of "dpmpp_2m" follow `multistep_schedule`.
        model_output_clean: the network gives the clean token, from which the velocity follows, instead of the velocity itself. The
            token is preconditioned as the denoised one of Karras et al. 2022: `token = c_skip(t) · x_t + c_out(t) · network`, so
            that input and target of the network have unit variance at all times.
        sigma_data: standard deviation of the tokens' entries, for the preconditioning.
        time_distribution: of the training times, "uniform" or "logit_normal" (Esser et al. 2024, eq. 19). The latter seldom draws
            times near 0 and 1: it favours the shape of the distribution over its exact spread.
        logit_mean, logit_std: location and scale of the logit-normal distribution.
        clamp_during_sampling: hold clean tokens within [-1, 1], for data of that range: True, False, or "guided" to hold them only
            where guidance would push them out.
        num_noise_draws: noise draws for each token and training step.
    """

    NUM_SAMPLE_STEPS: ClassVar = dict(euler=32, midpoint=16, heun=16, dpmpp_2m=16, euler_maruyama=32)

    def __init__(
        self,
        net: MLP,
        *,
        solver: Literal["euler", "midpoint", "heun", "dpmpp_2m", "euler_maruyama"] = "dpmpp_2m",
        num_sample_steps: int | dict[str, int] | None = None,
        model_output_clean: bool = True,
        sigma_data: float = 0.5,
        time_distribution: Literal["uniform", "logit_normal"] = "logit_normal",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        clamp_during_sampling: bool | Literal["guided"] = False,
        num_noise_draws: int = 1,
    ):
        super().__init__(
            net,
            solver=solver,
            num_sample_steps=num_sample_steps,
            clamp_during_sampling=clamp_during_sampling,
            num_noise_draws=num_noise_draws,
        )
        check_choice("time_distribution", time_distribution, TIME_DISTRIBUTIONS)
        check_above_zero(sigma_data=sigma_data, logit_std=logit_std)

        self.model_output_clean = model_output_clean
        self.sigma_data = sigma_data
        self.time_distribution = time_distribution
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    # the preconditioning of Karras et al. 2022, appendix B.6, for x_t = (1 - t) · noise + t · token: floats and tensors alike

    def variance(self, times):
        """The variance of x_t."""
        return (1 - times) ** 2 + (times * self.sigma_data) ** 2

    def c_skip(self, times):
        return times * self.sigma_data**2 / self.variance(times)

    def c_out(self, times):
        return (1 - times) * self.sigma_data / self.variance(times) ** 0.5

    def c_in(self, times):
        return 1 / self.variance(times) ** 0.5

    def velocity(self, noised: Tensor, times: Tensor | float, modulation: Tensor) -> Tensor:
        """The velocity dx/dt at `noised` (… d). `times` is a float or broadcasts against it."""
        if not self.model_output_clean:
            return self.net.denoise(noised, modulation).to(noised.dtype)
        output = self.net.denoise(self.c_in(times) * noised, modulation).to(noised.dtype)
        # (clean - x_t) / (1 - t) for clean = c_skip · x_t + c_out · output, 1 - t cancelled: nothing is singular at time 1
        slope = (times * self.sigma_data**2 - (1 - times)) / self.variance(times)
        return slope * noised + self.sigma_data / self.variance(times) ** 0.5 * output

    def draw_times(self, like: Tensor) -> Tensor:
        """Training times in (0, 1), of the shape of `like`."""
        if self.time_distribution == "uniform":
            return torch.rand_like(like)
        return torch.sigmoid(self.logit_mean + self.logit_std * torch.randn_like(like))

    def losses(self, tokens: Tensor, cond: Tensor) -> Tensor:
        times = self.draw_times(tokens[..., 0])
        modulation = self.net.modulate(times, cond)
        noise = torch.randn_like(tokens)
        noised = noise.lerp(tokens, times[..., None])
        # Liu et al. 2022, eq. 1: the velocity of the straight path is data minus noise everywhere on it
        return (self.velocity(noised, times[..., None], modulation) - (tokens - noise)).square().mean(dim=-1)

    # sampling

    def network_time(self, times: Tensor) -> Tensor:
        return times

    def noise_level(self, time: float) -> float:
        return (1 - time) / time if time > 0 else inf

    def evaluate(self, x: Tensor, time: float, modulation: Tensor) -> Tensor:
        return self.velocity(x, time, modulation)

    def data_range(self, x: Tensor, time: float) -> tuple[Tensor | float, Tensor | float]:
        # the clean token is x_t + (1 - t) · velocity; at time 1 it is x_t, whatever the velocity
        return ((-1 - x) / (1 - time), (1 - x) / (1 - time)) if time < 1 else (-inf, inf)

    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        # the time is a sigmoid, stretched to reach 0 and 1: as even in the logarithm of the noise level as that can be, for near
        # the tokens their finest details decide
        edge = 1 / (1 + exp(LOG_NOISE_LEVEL))

        def velocity(x: Tensor, log_level: Tensor) -> Tensor:
            share = torch.sigmoid(-log_level)
            time = ((share - edge) / (1 - 2 * edge)).clamp(0, 1)
            return -share * (1 - share) / (1 - 2 * edge) * self.velocity(x, time, modulate(time))

        return FlowToNoise(velocity, start=-LOG_NOISE_LEVEL, stop=LOG_NOISE_LEVEL, scale=1.0, noise_std=1.0)

    def integrate(self, velocity: Field, *, noise: Callable[[], State], num_steps: int, solver: str) -> State:
        if solver == "dpmpp_2m":
            # its times follow the noise levels (1 - t) / t between those of Karras et al. 2022, who have data of standard deviation
            # 0.5; but for the first: it is noise alone. It ends at the lowest: a step from there to 0 would change next to nothing
            unit = self.sigma_data / 0.5
            levels = dict(sigma_min=0.002 * unit, sigma_max=80.0 * unit, rho=7.0, sigma_data=self.sigma_data)
            sigmas = multistep_schedule(num_steps, **levels)
            times = [0.0, *(1 / (1 + sigma) for sigma in sigmas[1:])]
            # on the straight path, x_t + (1 - t) · velocity is the clean token
            x = dpmpp_2m(lambda x, t: x + (1 - t) * velocity(x, t), noise(), times, alpha=lambda t: t, sigma=lambda t: 1 - t)
            return x / times[-1]
        times = [i / num_steps for i in range(num_steps + 1)]
        if solver == "euler_maruyama":
            # Song et al. 2021 (https://arxiv.org/abs/2011.13456), eq. 13: with diffusion² / 2 times the score added to the
            # velocity, noise leaves the distribution at each time as it is. The score is -E[noise | x_t] / (1 - t), where
            # E[noise | x_t] = x_t - t · velocity; a diffusion of sqrt(2 (1 - t)) cancels what is singular at time 1 (one of the
            # choices of Ma et al. 2024, https://arxiv.org/abs/2401.08740)
            return euler_maruyama(
                lambda x, t: (1 + t) * velocity(x, t) - x, noise(), times, diffusion=lambda t: sqrt(2 * (1 - t)), noise=noise
            )
        return ODE_SOLVERS[solver](velocity, noise(), times)
