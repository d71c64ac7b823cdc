"""Numerical solvers as plain functions over a grid of times.

A solver knows no network. It gets a function of `(x, time)`, the state `x` and the grid, a sequence of Python floats, so that
nothing is ever read back from a device. The state may be a tensor or a plain number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, log, sqrt
from typing import TypeVar

State = TypeVar("State")  # a tensor, or a plain number
Field = Callable[[State, float], State]

FEW_STEPS = 5  # fewer steps of `dpmpp_2m` than these have noise levels of their own
FEW_STEPS_LEVELS = (40.0, 2.4)  # their range, in standard deviations of the data: what drew the best images, docs/recipe.md


def karras_schedule(num_levels: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Noise levels falling from `sigma_max` to `sigma_min`: eq. 5 of Karras et al. 2022, but for its last level, 0."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = [i / max(num_levels - 1, 1) for i in range(num_levels)]
    # exact at its ends, where the powers are rounded
    return [{0.0: sigma_max, 1.0: sigma_min}.get(t, (top + t * (bottom - top)) ** rho) for t in ramp]


def multistep_schedule(num_steps: int, sigma_min: float, sigma_max: float, rho: float, sigma_data: float) -> list[float]:
    """The levels of `num_steps` steps of `dpmpp_2m` on data of standard deviation `sigma_data`, from `sigma_max` to `sigma_min`.

    From `FEW_STEPS` on these are the levels of `karras_schedule`. Of fewer evaluations the second would say again what the first
    has said of noise alone, and the last find nothing open: fewer are even in the logarithm, over the range of `FEW_STEPS_LEVELS`,
    but for the first, which is `sigma_max`. They make images that look right, of which faint detail is left out. Where `sigma_min`
    or `sigma_max` leave no such range, they are those of `karras_schedule` too.
    """
    highest, lowest = (level * sigma_data for level in FEW_STEPS_LEVELS)
    highest = min(highest, sigma_max)
    if num_steps >= FEW_STEPS or not sigma_min < lowest < highest:
        return karras_schedule(num_steps + 1, sigma_min, sigma_max, rho)
    inner = [highest * (lowest / highest) ** (i / (num_steps - 1)) for i in range(1, num_steps)]
    return [sigma_max, *inner, sigma_min]


def euler(velocity: Field, x: State, times: Sequence[float]) -> State:
    """First order: one evaluation a step, at its start."""
    for time, next_time in pairwise(times):
        x = x + (next_time - time) * velocity(x, time)
    return x


def midpoint(velocity: Field, x: State, times: Sequence[float]) -> State:
    """Second order: two evaluations a step, at its start and at its middle."""
    for time, next_time in pairwise(times):
        step = next_time - time
        halfway = x + 0.5 * step * velocity(x, time)
        x = x + step * velocity(halfway, time + 0.5 * step)
    return x


def heun(velocity: Field, x: State, times: Sequence[float]) -> State:
    """Second order: two evaluations a step, at its start and at its end."""
    for time, next_time in pairwise(times):
        step = next_time - time
        slope = velocity(x, time)
        next_slope = velocity(x + step * slope, next_time)
        x = x + 0.5 * step * (slope + next_slope)
    return x


def dpmpp_2m(
    denoise: Field,
    x: State,
    times: Sequence[float],
    *,
    alpha: Callable[[float], float],
    sigma: Callable[[float], float],
) -> State:
    """DPM-Solver++(2M), second order with one evaluation a step: Algorithm 2 of Lu et al. 2022 (https://arxiv.org/abs/2211.01095).

    The state at a time is `alpha · data + sigma · noise`. In lambda = ln(alpha / sigma) the linear part of its equation is solved
    exactly, and the denoised state extrapolated from the last two evaluations. Where lambda is infinite (no data at the start, no
    noise at the end) nothing can be extrapolated: such a step, and the one after it, is of first order, exact for a denoised state
    that does not change.

    Args:
        denoise: the denoised state at `(x, time)`.
        alpha, sigma: share of the data and of the noise at a time.
    """

    def half_log_snr(time: float) -> float:
        if alpha(time) == 0:
            return -inf
        return log(alpha(time) / sigma(time)) if sigma(time) > 0 else inf

    last_step, last_denoised = inf, None
    for time, next_time in pairwise(times):
        step = half_log_snr(next_time) - half_log_snr(time)
        denoised = denoise(x, time)
        estimate = denoised
        if step < inf and last_step < inf:
            estimate = denoised + step / (2 * last_step) * (denoised - last_denoised)
        shrink = sigma(next_time) / sigma(time)
        x = shrink * x + (alpha(next_time) - alpha(time) * shrink) * estimate
        last_step, last_denoised = step, denoised
    return x


def euler_maruyama(
    drift: Field,
    x: State,
    times: Sequence[float],
    *,
    diffusion: Callable[[float], float],
    noise: Callable[[], State],
) -> State:
    """For a stochastic equation, dx = drift · dt + diffusion · dW: an Euler step and noise of the step's variance.

    The last step adds none: it would stay in the result.

    Args:
        diffusion: the size of the noise at a time.
        noise: draws unit noise of the state's shape.
    """
    for time, next_time in pairwise(times):
        step = next_time - time
        x = x + step * drift(x, time)
        if next_time != times[-1]:
            x = x + diffusion(time) * sqrt(step) * noise()
    return x


def stochastic_heun(
    denoise: Field,
    x: State,
    sigmas: Sequence[float],
    *,
    noise: Callable[[], State],
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = inf,
    S_noise: float = 1.0,
) -> State:
    """Algorithm 2 of Karras et al. 2022; with `S_churn = 0` it is their deterministic Algorithm 1.

    Args:
        denoise: the denoised state at `(x, sigma)`.
        x: the state at noise level `sigmas[0]`.
        sigmas: falling noise levels; the last may be 0.
        noise: draws unit noise of the state's shape.
    """
    num_steps = len(sigmas) - 1
    for sigma, next_sigma in pairwise(sigmas):
        # raise the noise level from sigma to sigma_hat
        churn = S_churn > 0 and S_tmin <= sigma <= S_tmax
        gamma = min(S_churn / num_steps, sqrt(2) - 1) if churn else 0.0
        sigma_hat = sigma + gamma * sigma
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


def visited_times(solver: Callable[[Field], float]) -> list[float]:
    """The times at which `solver(field)` evaluates its field, in order; it starts from a plain number.

    A solver's grid does not depend on the state, so a dry run on a plain number tells, before the first real step, everything
    that the network will be asked: what depends only on the time can then be computed for all steps at once.
    """
    times = []

    def record(x, time):
        times.append(time)
        return 0.0

    solver(record)
    return times
