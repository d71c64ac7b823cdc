from functools import partial
from itertools import pairwise
from math import sqrt

import pytest
import torch

from autoregressive_diffusion_pytorch.solvers import (
    dpmpp_2m,
    euler,
    euler_maruyama,
    heun,
    karras_schedule,
    midpoint,
    multistep_schedule,
    stochastic_heun,
    visited_times,
)


def grid(num_steps, start=0.0, stop=1.0):
    return [start + (stop - start) * i / num_steps for i in range(num_steps + 1)]


def order_of(solve, exact, num_steps):
    """Of convergence, from the errors at a number of steps and at twice as many."""
    errors = [abs(solve(n) - exact) for n in (num_steps, 2 * num_steps)]
    return torch.log2(torch.as_tensor(errors[0] / errors[1])).item()


def test_schedule_is_even_in_the_root_of_the_noise_level():
    sigmas = karras_schedule(7, sigma_min=0.01, sigma_max=50.0, rho=5.0)
    assert len(sigmas) == 7
    assert sigmas[0] == pytest.approx(50.0)
    assert sigmas[6] == pytest.approx(0.01)
    roots = [sigma**0.2 for sigma in sigmas]
    steps = [a - b for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 6)
    assert karras_schedule(1, sigma_min=0.01, sigma_max=50.0, rho=5.0) == pytest.approx([50.0])


def test_a_few_steps_evaluate_at_high_levels():
    schedule = dict(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    assert multistep_schedule(1, **schedule, sigma_data=0.5) == [50.0, 0.01]
    assert multistep_schedule(2, **schedule, sigma_data=0.5) == pytest.approx([50.0, 1.2, 0.01])
    # in units of the data; even in the logarithm
    assert multistep_schedule(3, **schedule, sigma_data=0.25) == pytest.approx([50.0, (10.0 * 0.6) ** 0.5, 0.6, 0.01])
    sigmas = multistep_schedule(4, **schedule, sigma_data=0.5)
    assert [a / b for a, b in pairwise([20.0, *sigmas[1:4]])] == pytest.approx([(20 / 1.2) ** (1 / 3)] * 3)
    assert multistep_schedule(3, **schedule, sigma_data=5.0) == pytest.approx([50.0, (50.0 * 12.0) ** 0.5, 12.0, 0.01])
    # of more steps, and where the ends leave no room, the usual ones
    assert multistep_schedule(5, **schedule, sigma_data=0.5) == karras_schedule(6, **schedule)
    for sigma_data in (0.004, 21.0):
        assert multistep_schedule(3, **schedule, sigma_data=sigma_data) == karras_schedule(4, **schedule)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (midpoint, 2), (heun, 2)])
def test_order_of_convergence(solver, order):
    # dx/dt = -2 t x has the solution x(1) = x(0) / e
    start = torch.tensor(1.0, dtype=torch.float64)
    assert order_of(lambda n: solver(lambda x, t: -2 * t * x, start, grid(n)), start / torch.e, 20) == pytest.approx(order, abs=0.1)


# the probability flow of a centred Gaussian takes the state at one time to another in proportion to its standard deviation there

STD = 0.5
START = torch.tensor(3.0, dtype=torch.float64)


def denoise_exploding(x, sigma):
    """The ideal denoiser of x = data + sigma · noise."""
    return STD**2 / (STD**2 + sigma**2) * x


def denoise_straight(x, t):
    """The ideal denoiser of x = t · data + (1 - t) · noise."""
    return t * STD**2 / ((t * STD) ** 2 + (1 - t) ** 2) * x


EXPLODING = dict(alpha=lambda sigma: 1.0, sigma=lambda sigma: sigma)
STRAIGHT = dict(alpha=lambda t: t, sigma=lambda t: 1 - t)


@pytest.mark.parametrize("stop", [0.1, 0.0])
def test_heun_of_karras_is_of_second_order(stop):
    exact = START * sqrt((STD**2 + stop**2) / (STD**2 + 2.0**2))
    order = order_of(lambda n: stochastic_heun(denoise_exploding, START, grid(n, 2.0, stop), noise=None), exact, 40)
    assert order == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("denoise", "schedule", "start", "stop"),
    [(denoise_exploding, EXPLODING, 2.0, 0.1), (denoise_straight, STRAIGHT, 0.1, 0.9)],
    ids=["exploding", "straight"],
)
def test_dpm_solver_is_of_second_order(denoise, schedule, start, stop):
    def std(time):
        return sqrt((schedule["alpha"](time) * STD) ** 2 + schedule["sigma"](time) ** 2)

    exact = START * std(stop) / std(start)
    order = order_of(lambda n: dpmpp_2m(denoise, START, grid(n, start, stop), **schedule), exact, 80)
    assert order == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("denoise", "schedule", "start", "stop"),
    [(denoise_exploding, EXPLODING, 80.0, 0.0), (denoise_straight, STRAIGHT, 0.0, 1.0)],
    ids=["exploding", "straight"],
)
def test_dpm_solver_from_pure_noise_to_pure_data(denoise, schedule, start, stop):
    # evenly in the root of the noise level, as no solver takes an even grid from 80 to 0 well
    times = [start + (stop - start) * (1 - (1 - t) ** 4) if start > 1 else t for t in grid(200)]
    exact = START * STD / sqrt((schedule["alpha"](start) * STD) ** 2 + schedule["sigma"](start) ** 2)
    torch.testing.assert_close(dpmpp_2m(denoise, START, times, **schedule), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("schedule", [EXPLODING, STRAIGHT], ids=["exploding", "straight"])
def test_dpm_solver_is_exact_for_a_constant_denoised_state(schedule):
    start, stop = (5.0, 0.0) if schedule is EXPLODING else (0.0, 1.0)
    data = torch.tensor([0.3, -0.7], dtype=torch.float64)
    noise = torch.tensor([1.1, 0.4], dtype=torch.float64)
    for middle in (0.2, 0.7):
        state = schedule["alpha"](start) * data + schedule["sigma"](start) * noise
        state = dpmpp_2m(lambda x, t: data, state, [start, 0.9, middle], **schedule)
        torch.testing.assert_close(state, schedule["alpha"](middle) * data + schedule["sigma"](middle) * noise)
        torch.testing.assert_close(dpmpp_2m(lambda x, t: data, state, [middle, stop], **schedule), data)


def test_dpm_solver_extrapolates_from_the_last_two():
    # Lu et al. 2022, Algorithm 2, written out for the second of two steps of x = data + sigma · noise
    denoised = {4.0: torch.tensor(0.5), 2.0: torch.tensor(0.8)}
    x = dpmpp_2m(lambda x, sigma: denoised[sigma], torch.tensor(4.1), [4.0, 2.0, 0.5], **EXPLODING)
    middle = 2 / 4 * torch.tensor(4.1) + (1 - 2 / 4) * 0.5
    r = torch.tensor(4 / 2).log() / torch.tensor(2 / 0.5).log()
    estimate = (1 + 1 / (2 * r)) * 0.8 - 1 / (2 * r) * 0.5
    torch.testing.assert_close(x, 0.5 / 2 * middle + (1 - 0.5 / 2) * estimate)


def test_euler_maruyama_without_noise_is_euler():
    for drift in (lambda x, t: -2 * t * x, lambda x, t: t - x):
        x = euler_maruyama(drift, START, grid(7), diffusion=lambda t: 0.0, noise=lambda: START)
        assert x == euler(drift, START, grid(7))


def test_euler_maruyama_spreads_by_the_diffusion():
    # dx = -x dt + (1 + t) dW from 0, by its recursion: a step shrinks by 1 - h and adds the noise's variance, the last one none
    times, h = grid(10), 0.1
    variance = 0.0
    for time, next_time in pairwise(times):
        variance = variance * (1 - h) ** 2 + ((1 + time) ** 2 * h if next_time < 1 else 0.0)
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(40_000, generator=generator, dtype=torch.float64)

    x = euler_maruyama(lambda x, t: -x, torch.zeros(40_000).double(), times, diffusion=lambda t: 1 + t, noise=noise)
    # five standard errors of a variance
    assert x.var().item() == pytest.approx(variance, rel=5 * sqrt(2 / 40_000))


def test_churn_raises_the_noise_level_before_a_step():
    # Algorithm 2 written out for one step from sigma 1 to 0, where only the first evaluation counts
    x, eps = torch.tensor([2.0]), torch.tensor([0.3])
    seen = []

    def denoise(x, sigma):
        seen.append((x.item(), sigma))
        return torch.tensor([0.7])

    result = stochastic_heun(denoise, x, [1.0, 0.0], noise=lambda: eps, S_churn=0.2, S_noise=1.1)
    sigma_hat = 1.2
    assert seen == [(pytest.approx(2.0 + (sigma_hat**2 - 1) ** 0.5 * 1.1 * 0.3), pytest.approx(sigma_hat))]
    assert result.item() == pytest.approx(0.7)


def test_churn_only_between_its_limits():
    draws = []
    stochastic_heun(
        denoise_exploding,
        torch.ones(1),
        [4.0, 2.0, 1.0, 0.5, 0.0],
        noise=lambda: draws.append(1) or torch.zeros(1),
        S_churn=1.0,
        S_tmin=0.9,
        S_tmax=2.5,
    )
    assert len(draws) == 2


def visiting(solver):
    """The times that a solver, a function of the field and the state, visits: recorded in a real run, and in the dry one."""
    seen = []

    def field(x, time):
        seen.append(time)
        return 0.5 * x

    solver(field, torch.ones(2))
    return seen, visited_times(lambda field: solver(field, 0.0))


@pytest.mark.parametrize("S_churn", [0.0, 10.0])
def test_visited_times_are_those_of_the_real_run(S_churn):
    seen, foretold = visiting(partial(stochastic_heun, sigmas=[4.0, 2.0, 1.0, 0.0], noise=lambda: 0.1, S_churn=S_churn))
    assert foretold == seen
    assert len(seen) == 2 * 3 - 1


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (partial(euler, times=[0.0, 0.5, 1.0]), [0.0, 0.5]),
        (partial(midpoint, times=[0.0, 0.5, 1.0]), [0.0, 0.25, 0.5, 0.75]),
        (partial(heun, times=[0.0, 0.5, 1.0]), [0.0, 0.5, 0.5, 1.0]),
        (partial(dpmpp_2m, times=[0.0, 0.5, 1.0], **STRAIGHT), [0.0, 0.5]),
        (partial(euler_maruyama, times=[0.0, 0.5, 1.0], diffusion=lambda t: 1.0, noise=lambda: 0.1), [0.0, 0.5]),
    ],
    ids=["euler", "midpoint", "heun", "dpmpp_2m", "euler_maruyama"],
)
def test_visited_times(solver, expected):
    seen, foretold = visiting(solver)
    assert seen == foretold == expected
