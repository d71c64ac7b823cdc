import math
from functools import partial

import pytest
import torch
from helpers import FormulaNet, assert_mean, assert_std, stir

from autoregressive_diffusion_pytorch import RectifiedFlow
from autoregressive_diffusion_pytorch.heads.solvers import SOLVERS


def ideal_velocity(x, t, mean, std):
    """E[token - noise | x_t] for tokens of N(mean, std²): the regression of the velocity on x_t,
    both Gaussian."""
    variance = (1 - t) ** 2 + t**2 * std**2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)


SIGMA_DATA = 0.5


def formula_head(formula, **kwargs):
    head = RectifiedFlow(2, 1, width=1, depth=1, **kwargs)
    head.net = FormulaNet(formula)
    return head


def gaussian_head(mean, std, model_output_clean=False, **kwargs):
    """A head whose velocity is the ideal one of N(mean, std²), by either kind of output."""

    def formula(noised, times, cond):
        if not model_output_clean:
            return ideal_velocity(noised, times, mean, std)
        # the network of clean = c_skip · x_t + c_out · network, for the clean token x_t + (1 - t) ·
        # velocity; a factor of 1 - t in clean - c_skip · x_t and in c_out is cancelled, as some
        # solvers ask for time 1
        variance = (1 - times) ** 2 + times**2 * SIGMA_DATA**2
        noised = variance.sqrt() * noised
        over_one_minus_t = (
            ideal_velocity(noised, times, mean, std)
            + ((1 - times) - times * SIGMA_DATA**2) / variance * noised
        )
        return over_one_minus_t / (SIGMA_DATA / variance.sqrt())

    return formula_head(
        formula, model_output_clean=model_output_clean, sigma_data=SIGMA_DATA, **kwargs
    )


def expected_loss(std, density):
    """The variance of the velocity that x_t leaves open, averaged over the times."""
    t = torch.linspace(0, 1, 20_003, dtype=torch.float64)[1:-1]
    open_variance = 1 + std**2 - (t * std**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * std**2)
    return (torch.trapezoid(density(t) * open_variance, t) / torch.trapezoid(density(t), t)).item()


def logit_normal(t, mean, std):
    """Esser et al. 2024, eq. 19."""
    logit = (t / (1 - t)).log()
    return (-((logit - mean) ** 2) / (2 * std**2)).exp() / (
        std * math.sqrt(2 * math.pi) * t * (1 - t)
    )


@pytest.mark.parametrize(
    ("kwargs", "density"),
    [
        (dict(time_distribution="uniform"), torch.ones_like),
        (dict(time_distribution="logit_normal"), lambda t: logit_normal(t, 0.0, 1.0)),
        (
            dict(time_distribution="logit_normal", logit_mean=0.8, logit_std=0.5),
            lambda t: logit_normal(t, 0.8, 0.5),
        ),
    ],
)
def test_loss_of_the_ideal_velocity(kwargs, density):
    std = 0.6
    head = gaussian_head(0.3, std, **kwargs)
    losses = head(0.3 + std * torch.randn(100_000, 2), torch.zeros(100_000, 1))
    assert_mean(losses, expected_loss(std, density))


def test_clean_output_and_velocity_output_are_the_same_flow():
    x = torch.randn(50, 2)
    for t in torch.tensor([0.0, 0.3, 0.99]):
        flows = [gaussian_head(0.3, 0.6, model_output_clean=clean) for clean in (False, True)]
        velocities = [
            flow.velocity(x, t, flow.net.modulate(t.expand(50), torch.zeros(50, 1)), SIGMA_DATA)
            for flow in flows
        ]
        torch.testing.assert_close(*velocities, rtol=1e-4, atol=1e-4)


def test_clean_output_and_velocity_output_have_the_same_loss():
    tokens = torch.randn(1000, 2)
    losses = []
    for clean in (False, True):
        torch.manual_seed(0)
        losses.append(gaussian_head(0.3, 0.6, clean)(tokens, torch.zeros(1000, 1)))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_velocity_follows_from_the_preconditioned_clean_token():
    head = stir(RectifiedFlow(4, 6, depth=2, width=16))
    x, times = torch.randn(3, 4), torch.tensor([[0.0], [0.4], [0.9]])
    modulation = head.net.modulate(times[:, 0], torch.randn(3, 6))
    # c_skip, c_out and c_in of Karras et al. 2022, appendix B.6, for x_t = (1 - t) · noise + t ·
    # token
    variance = (1 - times) ** 2 + (0.7 * times) ** 2
    output = head.net.denoise(x / variance.sqrt(), modulation)
    clean = times * 0.7**2 / variance * x + (1 - times) * 0.7 / variance.sqrt() * output
    velocity = head.velocity(x, times, modulation, 0.7)
    torch.testing.assert_close(velocity, (clean - x) / (1 - times), rtol=1e-4, atol=1e-4)
    assert head.velocity(x, torch.tensor(1.0), modulation, 0.7).isfinite().all()


@pytest.mark.parametrize("time", [0.02, 0.3, 0.99])
def test_the_denoised_token_is_that_of_the_velocity(time):
    head = stir(RectifiedFlow(4, 6, depth=2, width=16)).double()
    x, modulation = (
        torch.randn(3, 4).double(),
        head.net.modulate(torch.tensor(time), torch.randn(3, 6)),
    )
    clean = time * x + (1 - time) * head.velocity(
        time * x, torch.tensor(time).double(), modulation, 0.7
    )
    torch.testing.assert_close(
        head.denoised(x, (1 - time) / time, modulation, 0.7), clean, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("time", [0.01, 0.2, 0.5, 0.99])
def test_preconditioning_keeps_variances_at_one(time, monkeypatch):
    head = RectifiedFlow(
        4,
        6,
        depth=1,
        width=8,
        sigma_data=0.7,
        logit_mean=math.log(time / (1 - time)),
        logit_std=1e-9,
    )
    seen = []
    monkeypatch.setattr(
        head.net,
        "denoise",
        lambda noised, modulation: seen.append(noised) or torch.zeros_like(noised),
    )
    losses = head(0.7 * torch.randn(20_000, 4), torch.zeros(20_000, 6))
    assert_std(seen[0].flatten(), 1.0)
    # of a network that says nothing, the variance of its target, by the weight of the velocity
    assert_mean(losses, 0.7**2 / ((1 - time) ** 2 + (0.7 * time) ** 2))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("model_output_clean", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampler_with_the_ideal_velocity(solver, model_output_clean, temperature):
    steps = dict(euler=400).get(solver, 100)
    head = gaussian_head(0.3, 0.6, model_output_clean, solver=solver, num_sample_steps=steps)
    samples = head.sample(torch.zeros(20_000, 1), temperature=temperature)
    # the error of the solver itself
    extra = 0.6 / steps
    assert_mean(samples, 0.3, extra=extra)
    assert_std(samples, 0.6 * temperature, extra=extra)


def test_the_solver_s_times_are_in_units_of_the_data():
    # tokens a thousand times smaller, drawn from noise as large as ever: the same tokens, in their
    # own units
    def velocity(noised, times, cond, std):
        return ideal_velocity(noised, times, 0.0, std)

    spreads = []
    for sigma_data in (0.5, 0.0005):
        formula = partial(velocity, std=0.4 * sigma_data)
        head = formula_head(
            formula, model_output_clean=False, sigma_data=sigma_data, num_sample_steps=32
        )
        sample = head.sample(torch.zeros(20_000, 1), generator=torch.Generator().manual_seed(0))
        spreads.append(sample.std().item() / sigma_data)
    assert spreads[0] == pytest.approx(0.4, rel=0.1)
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1)


def test_path_runs_from_noise_at_0_to_data_at_1():
    # the velocity to a fixed token along straight paths: a single Euler step from noise lands on
    # it, and so do many
    target = torch.tensor([0.25, -0.5])
    head = formula_head(
        lambda noised, times, cond: (target - noised) / (1 - times),
        model_output_clean=False,
        solver="euler",
    )
    torch.testing.assert_close(head.sample(torch.zeros(3, 1), num_steps=1), target.expand(3, 2))
    torch.testing.assert_close(head.sample(torch.zeros(3, 1), num_steps=10), target.expand(3, 2))
    torch.testing.assert_close(
        head.sample(torch.zeros(3, 1), solver="dpmpp_2m"), target.expand(3, 2)
    )


def test_times_are_spread_as_asked():
    head = stir(
        RectifiedFlow(
            4, 6, depth=1, width=8, time_distribution="logit_normal", logit_mean=0.5, logit_std=0.7
        )
    )
    times = head.draw_times(torch.zeros(20_000))
    assert 0 < times.min() < times.max() < 1
    logits = times.double().logit()
    assert_mean(logits, 0.5)
    assert_std(logits, 0.7)
    uniform = RectifiedFlow(4, 6, depth=1, width=8, time_distribution="uniform").draw_times(
        torch.zeros(20_000)
    )
    assert_mean(uniform, 0.5)
    assert_mean(uniform**2, 1 / 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(solver="heun2"), "solver must be one of 'dpmpp_2m', 'euler', 'heun', got 'heun2'"),
        (
            dict(time_distribution="cosine"),
            "time_distribution must be one of 'uniform', 'logit_normal', got 'cosine'",
        ),
        (dict(sigma_data=0.0), "sigma_data must be above 0, got 0.0"),
        (dict(logit_std=0.0), "logit_std must be above 0, got 0.0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RectifiedFlow(4, 6, depth=1, width=8, **kwargs)
