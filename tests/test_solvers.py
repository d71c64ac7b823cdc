from functools import partial

import pytest
import torch

from autoregressive_diffusion_pytorch.solvers import euler, midpoint, stochastic_heun, visited_times


def grid(num_steps, start=0.0, stop=1.0):
    return [start + (stop - start) * i / num_steps for i in range(num_steps + 1)]


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (midpoint, 2)])
def test_order_of_convergence(solver, order):
    # dx/dt = -2 t x has the solution x(1) = x(0) / e
    exact = torch.tensor(1.0, dtype=torch.float64) / torch.e
    errors = [(solver(lambda x, t: -2 * t * x, torch.tensor(1.0, dtype=torch.float64), grid(n)) - exact).abs() for n in (20, 40)]
    assert torch.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def gaussian_denoiser(x, sigma, std=0.5):
    """The ideal denoiser of a centred Gaussian."""
    return std**2 / (std**2 + sigma**2) * x


def test_heun_is_of_second_order():
    # the probability flow of a centred Gaussian takes x at sigma to x · std / sqrt(std² + sigma²) at 0
    start = torch.tensor(3.0, dtype=torch.float64)
    exact = start * 0.5 / (0.5**2 + 2.0**2) ** 0.5

    def error(num_steps):
        sigmas = grid(num_steps, 2.0, 0.0)
        return (stochastic_heun(gaussian_denoiser, start, sigmas, noise=None) - exact).abs()

    assert torch.log2(error(40) / error(80)) == pytest.approx(2, abs=0.2)


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
        gaussian_denoiser,
        torch.ones(1),
        [4.0, 2.0, 1.0, 0.5, 0.0],
        noise=lambda: draws.append(1) or torch.zeros(1),
        S_churn=1.0,
        S_tmin=0.9,
        S_tmax=2.5,
    )
    assert len(draws) == 2


@pytest.mark.parametrize("S_churn", [0.0, 10.0])
def test_visited_times_are_those_of_the_real_run(S_churn):
    solver = partial(stochastic_heun, sigmas=[4.0, 2.0, 1.0, 0.0], S_churn=S_churn)
    seen = []

    def denoise(x, sigma):
        seen.append(sigma)
        return 0.5 * x

    solver(denoise, torch.ones(2), noise=lambda: torch.randn(2))
    assert visited_times(partial(solver, noise=float)) == seen
    assert len(seen) == 2 * 3 - 1


def test_visited_times_of_midpoint():
    assert visited_times(partial(midpoint, times=[0.0, 0.5, 1.0])) == [0.0, 0.25, 0.5, 0.75]
