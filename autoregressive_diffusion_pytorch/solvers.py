"""Sigma schedules, and solvers as plain functions `(denoise, noise, sigmas)` that know no network.

All of them work on a noised token `x = token + sigma · noise`: a path `alpha · token + sigma_t · noise` is brought to it by
dividing by alpha, so that sigma is the noise's standard deviation over the signal's scale. `denoise(x, sigma)` is E[token | x],
`noise()` draws unit noise of the state's shape, and `sigmas` are falling Python floats that end at 0, so that nothing is read back
from a device. The last step of each, to 0, is of first order: its result is the last denoised token, whatever the last noise level
was.

The first level counts as infinite: there is noise alone. A step from it leaves out nothing of the token, as one from a state
`sigmas[0] · noise` would: a share std / sigma of its mean, which adds up along a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, sqrt

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]

# of the sampler, in standard deviations of the tokens: above there is nothing of a token to be seen, below nothing left to decide
HIGHEST_SIGMA = 20.0
LOWEST_SIGMA = 0.01

EXTRAPOLATION = 1 / 5  # the power of sigma along which `dpmpp_2m` extrapolates


def karras_schedule(num_steps: int, sigma_data: float, rho: float = 7.0) -> list[float]:
    """The noise levels of `num_steps` steps, the last of which is 0: eq. 5 of Karras et al. 2022, from `HIGHEST_SIGMA` to
    `LOWEST_SIGMA` standard deviations of the data."""
    top, bottom = (level ** (1 / rho) for level in (HIGHEST_SIGMA, LOWEST_SIGMA))
    ramp = [i / max(num_steps - 1, 1) for i in range(num_steps)]
    return [*(sigma_data * (top + share * (bottom - top)) ** rho for share in ramp), 0.0]


def euler(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """First order, one evaluation per step: Euler's method for eq. 1 of Karras et al. 2022, DDIM of Song et al. 2021."""
    x = noise()
    denoised = denoise(sigmas[0] * x, sigmas[0])
    x = denoised + sigmas[1] * x
    for sigma, next_sigma in pairwise(sigmas[1:]):
        denoised = denoise(x, sigma)
        x = denoised + next_sigma / sigma * (x - denoised)
    return x


def dpmpp_2m(denoise: Denoise, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """Second order, one evaluation per step: DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022 (https://arxiv.org/abs/2211.01095).

    The linear part of the equation is solved exactly, and the denoised token extrapolated from the last two evaluations to the
    middle of a step: there in ln(sigma), here in a power of sigma. The logarithm has no end towards 0, so that an extrapolation
    in it grows with the length of the last steps: of eight, tokens come out up to 14 % too wide. A power has one.
    """
    x = noise()
    denoised = denoise(sigmas[0] * x, sigmas[0])
    x = denoised + sigmas[1] * x
    clocks = [sigma**EXTRAPOLATION for sigma in sigmas]
    for i in range(1, len(sigmas) - 1):
        last, denoised = denoised, denoise(x, sigmas[i])
        estimate = denoised
        if sigmas[i + 1] > 0:
            half_step = (clocks[i] - clocks[i + 1]) / (2 * (clocks[i - 1] - clocks[i]))
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
    """Second order, two evaluations per step but for the first and the last: Algorithm 1 of Karras et al. 2022.

    With `S_churn` above 0 it is their stochastic Algorithm 2, which adds fresh noise before a step.
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


def num_evaluations(solver: str, num_steps: int) -> int:
    """The evaluations of the network per token (NFE) that a solver's steps take."""
    return max(2 * num_steps - 2, 1) if solver == "heun" else num_steps


SOLVERS = dict(dpmpp_2m=dpmpp_2m, euler=euler, heun=heun)
