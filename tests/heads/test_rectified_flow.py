import math

import pytest
import torch
from helpers import FormulaNet, assert_mean, assert_std, stir

from autoregressive_diffusion_pytorch import MLP, RectifiedFlow


def ideal_velocity(x, t, mean, std):
    """E[token - noise | x_t] for tokens of N(mean, std²): the regression of the velocity on x_t, both Gaussian."""
    variance = (1 - t) ** 2 + t**2 * std**2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)


def gaussian_head(mean, std, model_output_clean=False, **kwargs):
    def formula(noised, times, cond):
        velocity = ideal_velocity(noised, times, mean, std)
        return noised + (1 - times) * velocity if model_output_clean else velocity

    return RectifiedFlow(FormulaNet(2, formula), model_output_clean=model_output_clean, **kwargs)


def expected_loss(std, density):
    """The variance of the velocity that x_t leaves open, averaged over the times."""
    t = torch.linspace(0, 1, 20_003, dtype=torch.float64)[1:-1]
    open_variance = 1 + std**2 - (t * std**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * std**2)
    return (torch.trapezoid(density(t) * open_variance, t) / torch.trapezoid(density(t), t)).item()


def logit_normal(t, mean, std):
    """Esser et al. 2024, eq. 19."""
    logit = (t / (1 - t)).log()
    return (-((logit - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi) * t * (1 - t))


@pytest.mark.parametrize(
    ("kwargs", "density"),
    [
        (dict(time_distribution="uniform"), torch.ones_like),
        (dict(time_distribution="logit_normal"), lambda t: logit_normal(t, 0.0, 1.0)),
        (dict(time_distribution="logit_normal", logit_mean=0.8, logit_std=0.5), lambda t: logit_normal(t, 0.8, 0.5)),
    ],
)
def test_loss_of_the_ideal_velocity(kwargs, density):
    std = 0.6
    head = gaussian_head(0.3, std, **kwargs)
    losses = head(0.3 + std * torch.randn(100_000, 2), torch.zeros(100_000, 1))
    assert_mean(losses, expected_loss(std, density))


def test_clean_output_and_velocity_output_are_the_same_flow():
    x = torch.randn(50, 2)
    for t in (0.0, 0.3, 0.99):
        flows = [gaussian_head(0.3, 0.6, model_output_clean=clean) for clean in (False, True)]
        velocities = [flow.velocity(x, t, flow.net.modulate(torch.full((50,), t), torch.zeros(50, 1))) for flow in flows]
        torch.testing.assert_close(*velocities, rtol=1e-4, atol=1e-4)


def test_clean_output_and_velocity_output_have_the_same_loss():
    # but for times within eps of 1, where the weight of the clean token's error is held back
    tokens = torch.randn(1000, 2)
    losses = []
    for clean in (False, True):
        torch.manual_seed(0)
        losses.append(gaussian_head(0.3, 0.6, clean, eps=1e-6)(tokens, torch.zeros(1000, 1)))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_weight_of_times_near_1_is_bounded():
    def formula(noised, times, cond):
        return torch.full_like(noised, 0.3)

    head = RectifiedFlow(FormulaNet(2, formula), eps=0.1)
    losses = head(torch.zeros(50_000, 2), torch.zeros(50_000, 1))
    assert 0.99 * (0.3 / 0.1) ** 2 < losses.max() <= 1.001 * (0.3 / 0.1) ** 2


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("model_output_clean", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampler_with_the_ideal_velocity(solver, model_output_clean, temperature):
    steps = dict(euler=400, midpoint=100)[solver]
    head = gaussian_head(0.3, 0.6, model_output_clean, solver=solver, num_sample_steps=steps)
    samples = head.sample(torch.zeros(20_000, 1), temperature=temperature)
    # the error of the solver itself
    extra = 0.6 / steps
    assert_mean(samples, 0.3, extra=extra)
    assert_std(samples, 0.6 * temperature, extra=extra)


def test_path_runs_from_noise_at_0_to_data_at_1():
    # a network that says "stay where the token is": with clean output one Euler step lands on the network's output
    target = torch.tensor([0.25, -0.5])
    head = RectifiedFlow(FormulaNet(2, lambda noised, times, cond: target.expand_as(noised)), solver="euler")
    torch.testing.assert_close(head.sample(torch.zeros(3, 1), num_steps=1), target.expand(3, 2))
    torch.testing.assert_close(head.sample(torch.zeros(3, 1), num_steps=10), target.expand(3, 2))


def test_times_are_spread_as_asked():
    head = stir(RectifiedFlow(MLP(6, 4, depth=1, width=8), time_distribution="logit_normal", logit_mean=0.5, logit_std=0.7))
    times = head.draw_times(torch.zeros(20_000))
    assert 0 < times.min() < times.max() < 1
    logits = times.double().logit()
    assert_mean(logits, 0.5)
    assert_std(logits, 0.7)
    uniform = RectifiedFlow(MLP(6, 4, depth=1, width=8), time_distribution="uniform").draw_times(torch.zeros(20_000))
    assert_mean(uniform, 0.5)
    assert_mean(uniform**2, 1 / 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(solver="heun2"), "solver must be one of 'euler', 'midpoint', got 'heun2'"),
        (dict(time_distribution="cosine"), "time_distribution must be one of 'uniform', 'logit_normal', got 'cosine'"),
        (dict(eps=0.0), "eps must be above 0, got 0.0"),
        (dict(logit_std=0.0), "logit_std must be above 0, got 0.0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RectifiedFlow(MLP(6, 4, depth=1, width=8), **kwargs)
