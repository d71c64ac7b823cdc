from functools import partial
from itertools import pairwise
from math import inf, sqrt

import pytest
import torch

from autoregressive_diffusion_pytorch.heads.solvers import (
    MAX_SIGMA,
    MIN_SIGMA,
    SOLVERS,
    dpmpp_2m,
    euler,
    heun,
    karras_schedule,
    num_evaluations,
)

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.mark.parametrize("rho", [5.0, 7.0])
def test_schedule_is_even_in_the_root_of_the_noise_level_and_ends_at_0(rho):
    *sigmas, last = karras_schedule(7, 0.25, rho)
    assert last == 0
    assert len(sigmas) == 7
    # in units of the data
    assert sigmas[0] == pytest.approx(MAX_SIGMA * 0.25)
    assert sigmas[6] == pytest.approx(MIN_SIGMA * 0.25)
    steps = [a - b for a, b in pairwise(sigma ** (1 / rho) for sigma in sigmas)]
    assert steps == pytest.approx([steps[0]] * 6)
    assert karras_schedule(1, 0.25) == pytest.approx([MAX_SIGMA * 0.25, 0])


# the probability flow of a Gaussian takes the noise n to mean + std · n

STD, MEAN = 0.5, 0.3
NOISE = torch.tensor([3.0, -1.0], dtype=torch.float64)
EXACT = MEAN + STD * NOISE


def denoise(x, sigma):
    """The ideal denoiser of x = data + sigma · noise."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def run(solver, num_steps, denoise=denoise, **kwargs):
    return solver(denoise, lambda: NOISE, karras_schedule(num_steps, STD), **kwargs)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence(solver, order):
    # what the schedule leaves out, above its highest and below its lowest level, no number of steps
    # brings back
    sigmas = {n: karras_schedule(n + 1, STD)[:-1] for n in (80, 160, 2560)}
    ends = {n: solver(denoise, lambda: NOISE, levels) for n, levels in sigmas.items()}
    errors = [(ends[n] - ends[2560]).abs().max() for n in (80, 160)]
    assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(order, abs=0.25)


@solvers
def test_solvers_end_where_the_flow_does(solver):
    # up to what the schedule leaves out: a share of 1 / (2 · 20²) of the spread above it,
    # MIN_SIGMA² / 2 below
    steps = 4000 if solver is euler else 400
    torch.testing.assert_close(run(solver, steps), EXACT, rtol=4e-3, atol=0)


@solvers
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_constant_denoised_token_is_exact_in_any_number_of_steps(solver, num_steps):
    data = torch.tensor([0.3, -0.7], dtype=torch.float64)
    torch.testing.assert_close(run(solver, num_steps, lambda x, sigma: data), data)


@solvers
def test_the_mean_is_exact_in_any_number_of_steps(solver):
    # the first level counts as infinite: the noise tells nothing of the mean
    for num_steps in (2, 5, 9):
        ends = [
            solver(denoise, lambda s=sign: s * NOISE, karras_schedule(num_steps, STD))
            for sign in (1, -1)
        ]
        torch.testing.assert_close(
            (ends[0] + ends[1]) / 2, torch.full_like(NOISE, MEAN), rtol=1e-2, atol=0
        )


@solvers
def test_evaluations_and_the_levels_that_they_are_at(solver):
    for num_steps in (1, 2, 5):
        seen = []
        run(solver, num_steps, lambda x, sigma: seen.append(sigma) or x)  # noqa: B023
        name = next(name for name, function in SOLVERS.items() if function is solver)
        assert len(seen) == num_evaluations(name, num_steps)
        assert sorted(set(seen), reverse=True) == karras_schedule(num_steps, STD)[:-1]


@solvers
def test_the_first_evaluation_sees_noise_alone_and_the_last_is_the_result(solver):
    seen = []

    def record(x, sigma):
        seen.append((x, denoise(x, sigma)))
        return seen[-1][1]

    result = run(solver, 6, record)
    torch.testing.assert_close(seen[0][0], MAX_SIGMA * STD * NOISE)
    torch.testing.assert_close(result, seen[-1][1])


def test_dpm_solver_by_hand():
    # Algorithm 2 of Lu et al. 2022 with lambda = -ln(sigma), but for the variable of the
    # extrapolation
    sigmas = [4.0, 1.0, 0.3, 0.1, 0.0]
    first = denoise(4.0 * NOISE, 4.0)
    x = first + 1.0 * NOISE
    second = denoise(x, 1.0)
    slope = (1.0**0.2 - 0.3**0.2) / (2 * (4.0**0.2 - 1.0**0.2))
    x = 0.3 * x + 0.7 * (second + slope * (second - first))
    third = denoise(x, 0.3)
    slope = (0.3**0.2 - 0.1**0.2) / (2 * (1.0**0.2 - 0.3**0.2))
    x = 0.1 / 0.3 * x + (1 - 0.1 / 0.3) * (third + slope * (third - second))
    torch.testing.assert_close(dpmpp_2m(denoise, lambda: NOISE, sigmas), denoise(x, 0.1))


def test_stochastic_heun_is_deterministic_without_churn():
    assert torch.equal(run(heun, 6), run(heun, 6, S_churn=0.0, S_tmin=0.0, S_tmax=inf, S_noise=2.0))


def test_churn_adds_noise_within_its_bounds():
    draws = []

    def noise():
        draws.append(1)
        return NOISE

    levels = karras_schedule(12, STD)
    heun(denoise, noise, levels, S_churn=4.0, S_tmin=0.1, S_tmax=1.0)
    assert len(draws) == 1 + sum(0.1 <= sigma <= 1.0 for sigma in levels[1:])


@pytest.mark.parametrize("S_churn", [2.0, 1000.0])
def test_one_stochastic_step_by_hand(S_churn):
    # Karras et al. 2022, Algorithm 2; gamma is at most sqrt(2) - 1
    values = iter([NOISE, torch.ones_like(NOISE)])
    result = heun(denoise, partial(next, values), [4.0, 1.0, 0.4], S_churn=S_churn, S_noise=1.1)
    x = denoise(4.0 * NOISE, 4.0) + NOISE
    sigma_hat = 1 + min(S_churn / 2, sqrt(2) - 1)
    x = x + sqrt(sigma_hat**2 - 1) * 1.1
    slope = (x - denoise(x, sigma_hat)) / sigma_hat
    ahead = x + (0.4 - sigma_hat) * slope
    x = x + (0.4 - sigma_hat) / 2 * (slope + (ahead - denoise(ahead, 0.4)) / 0.4)
    torch.testing.assert_close(result, x)
