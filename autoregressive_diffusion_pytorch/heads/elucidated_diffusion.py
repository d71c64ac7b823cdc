"""The EDM head: "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022.

https://arxiv.org/abs/2206.00364; equations, tables and algorithms below are numbered as there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.checks import check_above_zero
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.solvers import stochastic_heun, visited_times


class ElucidatedDiffusion(Head):
    """A diffusion head with the preconditioning, training and sampling of Karras et al. 2022.

    Args:
        net: the denoiser, F of Table 1.
        num_sample_steps: N of eq. 5; a step is two evaluations of the network, the last one is one.
        sigma_min, sigma_max, rho: the sampling schedule, eq. 5.
        sigma_data: standard deviation of the tokens' entries.
        P_mean, P_std: mean and standard deviation of ln(sigma) in training.
        S_churn, S_tmin, S_tmax, S_noise: the stochastic sampler, Algorithm 2; with `S_churn = 0` it is Algorithm 1.
        clamp_during_sampling: hold the denoised token in [-1, 1] while sampling (never while training, where it would cut
            the gradient): for data known to lie there.
        num_noise_draws: noise draws for each token and training step.
    """

    def __init__(
        self,
        net: MLP,
        *,
        num_sample_steps: int = 32,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        S_churn: float = 0.0,
        S_tmin: float = 0.05,
        S_tmax: float = 50.0,
        S_noise: float = 1.003,
        clamp_during_sampling: bool = False,
        num_noise_draws: int = 1,
    ):
        super().__init__(net, num_sample_steps=num_sample_steps, num_noise_draws=num_noise_draws)
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min and sigma_max must be 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        check_above_zero(sigma_data=sigma_data, rho=rho, P_std=P_std)
        if not S_churn >= 0:
            raise ValueError(f"S_churn must be at least 0, got {S_churn}")

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
        self.clamp_during_sampling = clamp_during_sampling

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

    def schedule(self, num_steps: int) -> list[float]:
        """The `num_steps` falling noise levels of eq. 5, and a last one of 0."""
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = (i / max(num_steps - 1, 1) for i in range(num_steps))
        return [*((top + t * (bottom - top)) ** self.rho for t in ramp), 0.0]

    def draw(self, cond: Tensor, num_steps: int, noise: Callable[[], Tensor]) -> Tensor:
        sigmas = self.schedule(num_steps)
        churn = dict(S_churn=self.S_churn, S_tmin=self.S_tmin, S_tmax=self.S_tmax, S_noise=self.S_noise)
        solver = partial(stochastic_heun, sigmas=sigmas, **churn)

        visited = torch.tensor(visited_times(partial(solver, noise=float)), device=cond.device)
        times = self.c_noise(visited).view(-1, *(1 for _ in cond.shape[:-1]))
        modulations = iter(self.net.modulate(times, cond))

        def denoise(x: Tensor, sigma: float) -> Tensor:
            x = self.denoised(x, sigma, next(modulations))
            return x.clamp(-1, 1) if self.clamp_during_sampling else x

        return solver(denoise, sigmas[0] * noise(), noise=noise)
