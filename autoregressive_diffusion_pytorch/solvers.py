"""Numerical solvers as plain functions over a grid of times.

A solver knows no network. It gets a function of `(x, time)`, the state `x` and the grid, a sequence of Python floats, so that
nothing is ever read back from a device. The state may be a tensor or a plain number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import TypeVar

State = TypeVar("State")  # a tensor, or a plain number
Field = Callable[[State, float], State]


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


def stochastic_heun(
    denoise: Field,
    x: State,
    sigmas: Sequence[float],
    *,
    noise: Callable[[], State],
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = float("inf"),
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


def visited_times(solver: Callable[[Field, float], float]) -> list[float]:
    """The times at which `solver(field, x)` evaluates its field, in order.

    A solver's grid does not depend on the state, so a dry run on a plain number tells, before the first real step, everything
    that the network will be asked: what depends only on time and condition can then be computed for all steps at once.
    """
    times = []

    def record(x, time):
        times.append(time)
        return 0.0

    solver(record, 0.0)
    return times
