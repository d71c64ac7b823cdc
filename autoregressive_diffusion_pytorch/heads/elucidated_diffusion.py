"""The EDM head: "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022.

https://arxiv.org/abs/2206.00364; equations, tables and algorithms below are numbered as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.checks import check_above_zero
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.likelihood import FlowToNoise
from autoregressive_diffusion_pytorch.solvers import (
    Field,
    State,
    dpmpp_2m,
    euler,
    karras_schedule,
    midpoint,
    multistep_schedule,
    stochastic_heun,
)

ODE_SOLVERS = {"euler": euler, "midpoint": midpoint}


class ElucidatedDiffusion(Head):
    """A diffusion head with the preconditioning, training and sampling of Karras et al. 2022.

    Args:
        net: the denoiser, F of Table 1.
        solver: "dpmpp_2m" or "euler" (one evaluation of the network a step), "midpoint" (two), or "heun" (two, the last step one:
            Algorithm 1, and with `S_churn` above 0 the stochastic Algorithm 2). By default "heun" if `S_churn` is above 0, else
            "dpmpp_2m".
        num_sample_steps: steps of the solver; or a dictionary with those of solvers by name. Those of all others are in
            `NUM_SAMPLE_STEPS`.
        sigma_min, sigma_max, rho: the sampling schedule, eq. 5; "dpmpp_2m" has that of `multistep_schedule` and ends at
            `sigma_min`, the others at 0.
        sigma_data: standard deviation of the tokens' entries.
        P_mean, P_std: mean and standard deviation of ln(sigma) in training. The mean is that of Karras et al. 2024 for latents
            (https://arxiv.org/abs/2312.02696): with the -1.2 of 2022, for whole images, patches of images get worse.
        S_churn, S_tmin, S_tmax, S_noise: of the stochastic sampler, Algorithm 2; solvers other than "heun" take no notice.
        clamp_during_sampling: hold denoised tokens within [-1, 1], for data of that range: True, False, or "guided" to hold them
            only where guidance would push them out. (Never while training, where it would cut the gradient.)
        num_noise_draws: noise draws for each token and training step.
    """

    NUM_SAMPLE_STEPS: ClassVar = dict(euler=32, midpoint=16, heun=32, dpmpp_2m=16)

    def __init__(
        self,
        net: MLP,
        *,
        solver: Literal["euler", "midpoint", "heun", "dpmpp_2m"] | None = None,
        num_sample_steps: int | dict[str, int] | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        P_mean: float = -0.4,
        P_std: float = 1.2,
        S_churn: float = 0.0,
        S_tmin: float = 0.05,
        S_tmax: float = 50.0,
        S_noise: float = 1.003,
        clamp_during_sampling: bool | Literal["guided"] = False,
        num_noise_draws: int = 1,
    ):
        if not S_churn >= 0:
            raise ValueError(f"S_churn must be at least 0, got {S_churn}")
        if S_churn > 0 and solver not in (None, "heun"):
            raise ValueError(f"S_churn above 0 needs the solver 'heun', got {solver!r}")
        if solver is None:
            solver = "heun" if S_churn > 0 else "dpmpp_2m"
        super().__init__(
            net,
            solver=solver,
            num_sample_steps=num_sample_steps,
            clamp_during_sampling=clamp_during_sampling,
            num_noise_draws=num_noise_draws,
        )
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min and sigma_max must be 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        check_above_zero(sigma_data=sigma_data, rho=rho, P_std=P_std)

        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.sigma_data = sigma_data
        self.rho = rho
        self.P_mean = P_mean
        self.P_std = P_std
        self.S_churn = S_churn
        self.S_tmin = S_tmin
        self.S_tmax = S_tmax
        self.S_noise = S_noise

    # preconditioning, Table 1: the scalings take floats and tensors alike

    def c_skip(self, sigma):
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma):
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2) ** 0.5

    def c_in(self, sigma):
        return 1 / (sigma**2 + self.sigma_data**2) ** 0.5

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def denoised(self, noised: Tensor, sigma: Tensor | float, modulation: Tensor) -> Tensor:
        """The denoiser D(x; sigma) of eq. 7. `sigma` is a float or broadcasts against `noised` (… d)."""
        output = self.net.denoise(self.c_in(sigma) * noised, modulation).to(noised.dtype)
        return self.c_skip(sigma) * noised + self.c_out(sigma) * output

    # training: Table 1, "Training" and "Loss weighting"

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def losses(self, tokens: Tensor, cond: Tensor) -> Tensor:
        ln_sigma = self.P_mean + self.P_std * torch.randn(tokens.shape[:-1], device=tokens.device, dtype=tokens.dtype)
        sigma = ln_sigma.exp()
        modulation = self.net.modulate(self.c_noise(sigma), cond)
        noised = tokens + sigma[..., None] * torch.randn_like(tokens)
        errors = (self.denoised(noised, sigma[..., None], modulation) - tokens).square().mean(dim=-1)
        return self.loss_weight(sigma) * errors

    # sampling

    def network_time(self, times: Tensor) -> Tensor:
        return self.c_noise(times)

    def noise_level(self, time: float) -> float:
        return time

    def evaluate(self, x: Tensor, time: float, modulation: Tensor) -> Tensor:
        return self.denoised(x, time, modulation)

    def data_range(self, x: Tensor, time: float) -> tuple[float, float]:
        return -1.0, 1.0

    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        # eq. 1 with eqs. 3 and 7, for y = c_in · x by ln(sigma): there all that the preconditioning adds cancels, and y is of unit
        # variance all along. Tokens count as those of noise level sigma_min: the network knows no lower one
        def velocity(y: Tensor, ln_sigma: Tensor) -> Tensor:
            sigma = ln_sigma.exp()
            output = self.net.denoise(y, modulate(sigma)).to(y.dtype)
            return -self.c_in(sigma) * self.c_out(sigma) * output

        return FlowToNoise(
            velocity,
            start=math.log(self.sigma_min),
            stop=math.log(self.sigma_max),
            scale=self.c_in(self.sigma_min),
            noise_std=self.c_in(self.sigma_max) * self.sigma_max,
        )

    def integrate(self, denoise: Field, *, noise: Callable[[], State], num_steps: int, solver: str) -> State:
        levels = dict(sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        x = self.sigma_max * noise()
        if solver == "dpmpp_2m":
            # it ends at sigma_min: from there to 0 it would take an evaluation that changes next to nothing
            sigmas = multistep_schedule(num_steps, **levels, sigma_data=self.sigma_data)
            return dpmpp_2m(denoise, x, sigmas, alpha=lambda sigma: 1.0, sigma=lambda sigma: sigma)
        sigmas = [*karras_schedule(num_steps, **levels), 0.0]
        if solver == "heun":
            churn = dict(S_churn=self.S_churn, S_tmin=self.S_tmin, S_tmax=self.S_tmax, S_noise=self.S_noise)
            return stochastic_heun(denoise, x, sigmas, noise=noise, **churn)
        # eq. 1, with time as the noise level and eq. 3 for the score
        return ODE_SOLVERS[solver](lambda x, sigma: (x - denoise(x, sigma)) / sigma, x, sigmas)
