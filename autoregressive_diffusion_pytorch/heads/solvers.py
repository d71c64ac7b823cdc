"""The sigma schedule, and solvers as plain functions `(denoise, noise, sigmas)`: no networks here.

A solver works on a noised token x = token + sigma · noise. Dividing a path alpha · token + sigma_t
· noise by alpha brings it to that form: sigma is the std of the noise over the scale of the signal.
`denoise(x, sigma)` is E[token | x], `noise()` draws unit noise, and `sigmas` are falling Python
floats that end at 0, so that nothing is read back from a device. The last step, to 0, is of first
order: it gives the last denoised token, whatever the last sigma was.

The first step starts from pure noise, as if the first sigma were infinite. To start from `sigmas[0]
· noise` would leave out a share std / sigma of the token's mean, which adds up along a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, sqrt

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]

# in stds of the tokens: above it a token cannot be seen, below it nothing is left to decide
MAX_SIGMA = 20.0
MIN_SIGMA = 0.01

EXTRAPOLATION = 1 / 5  # the power of sigma along which `dpmpp_2m` extrapolates


def karras_schedule(num_steps: int, sigma_data: float, rho: float = 7.0) -> list[float]:
    """The sigmas of `num_steps` steps: eq. 5 of Karras et al. 2022.

    They fall from `MAX_SIGMA` to `MIN_SIGMA` stds of the data, and end at 0.
    """
    top, bottom = (sigma ** (1 / rho) for sigma in (MAX_SIGMA, MIN_SIGMA))
    ramp = [i / max(num_steps - 1, 1) for i in range(num_steps)]
    return [*(sigma_data * (top + share * (bottom - top)) ** rho for share in ramp), 0.0]


def euler(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """First order, one evaluation per step: DDIM of Song et al. 2021.

    Euler's method for eq. 1 of Karras et al. 2022.
    """
    x = noise()
    denoised = denoise(sigmas[0] * x, sigmas[0])
    x = denoised + sigmas[1] * x
    for sigma, next_sigma in pairwise(sigmas[1:]):
        denoised = denoise(x, sigma)
        x = denoised + next_sigma / sigma * (x - denoised)
    return x


def dpmpp_2m(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """Second order, one evaluation per step: DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022.

    https://arxiv.org/abs/2211.01095. It solves the linear part of the equation exactly, and
    extrapolates the denoised token from the last two evaluations to the middle of a step: there in
    ln(sigma), here in a power of sigma. ln(sigma) diverges towards 0, so that an extrapolation in
    it overshoots in the long last steps, and tokens come out too wide; a power of sigma ends at 0.
    """
    x = noise()
    denoised = denoise(sigmas[0] * x, sigmas[0])
    x = denoised + sigmas[1] * x
    powers = [sigma**EXTRAPOLATION for sigma in sigmas]
    for i in range(1, len(sigmas) - 1):
        last, denoised = denoised, denoise(x, sigmas[i])
        estimate = denoised
        if sigmas[i + 1] > 0:
            half_step = (powers[i] - powers[i + 1]) / (2 * (powers[i - 1] - powers[i]))
            estimate = denoised + half_step * (denoised - last)
        x = estimate + sigmas[i + 1] / sigmas[i] * (x - estimate)
    return x


def heun(
    denoise: Denoise,
    noise: Noise,
    sigmas: Sequence[float],
    *,
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = inf,
    S_noise: float = 1.0,
) -> Tensor:
    """Second order, two evaluations per step but for the first and the last.

    Algorithm 1 of Karras et al. 2022; with `S_churn` above 0 their stochastic Algorithm 2, which
    adds fresh noise before a step.
    """
    num_steps = len(sigmas) - 1
    x = noise()
    denoised = denoise(sigmas[0] * x, sigmas[0])
    x = denoised + sigmas[1] * x
    for sigma, next_sigma in pairwise(sigmas[1:]):
        # raise the noise level from sigma to sigma_hat
        churn = S_churn > 0 and S_tmin <= sigma <= S_tmax
        sigma_hat = sigma * (1 + min(S_churn / num_steps, sqrt(2) - 1)) if churn else sigma
        if churn:
            x = x + sqrt(sigma_hat**2 - sigma**2) * S_noise * noise()

        # an Euler step from sigma_hat down to the next level
        slope = (x - denoise(x, sigma_hat)) / sigma_hat
        next_x = x + (next_sigma - sigma_hat) * slope

        # the second-order correction; the slope is not defined at sigma 0
        if next_sigma > 0:
            next_slope = (next_x - denoise(next_x, next_sigma)) / next_sigma
            next_x = x + (next_sigma - sigma_hat) * 0.5 * (slope + next_slope)
        x = next_x
    return x


def follow_map(denoise: Callable[..., Tensor], noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """Steps of a flow map, one evaluation each, from pure noise: the first sigma is infinite.

    Unlike the solvers above, on the straight path x = t · token + (1 - t) · noise, and with
    `denoise(x, sigma, next_sigma)`, the token towards which x moves in a step.
    """
    x = noise()
    for sigma, next_sigma in pairwise(sigmas):
        s, t = 1 / (1 + sigma), 1 / (1 + next_sigma)
        x = torch.lerp(x, denoise(x, sigma, next_sigma), (t - s) / (1 - s))
    return x


def num_evaluations(solver: str, num_steps: int) -> int:
    """The evaluations of the network per token (NFE) that a solver's steps take."""
    return max(2 * num_steps - 2, 1) if solver == "heun" else num_steps


SOLVERS = dict(dpmpp_2m=dpmpp_2m, euler=euler, heun=heun)
