import math

import pytest
import torch
from helpers import STANDARD_ERRORS

from autoregressive_diffusion_pytorch.heads.likelihood import (
    ADAPTIVE_SOLVERS,
    FIXED_STEP_SOLVERS,
    DensitySolver,
    FlowToNoise,
    divergence,
)

STEPS = dict(rk4=16, midpoint=64, heun2=128, euler=500)


def field(x):
    """A field whose Jacobian is neither symmetric nor the same everywhere."""
    return torch.stack(
        (x[..., 0] * x[..., 1].sin(), x[..., 2] ** 2 - x[..., 0], x.prod(dim=-1)), dim=-1
    )


@pytest.mark.parametrize("shape", [(), (5,), (2, 4)])
def test_the_exact_divergence_is_the_trace_of_autograd_s_jacobian(shape):
    x = torch.randn(*shape, 3, dtype=torch.float64)
    value, traces = divergence(field, x, DensitySolver(divergence="exact").probes(x))
    torch.testing.assert_close(value, field(x))
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(field, sample) for sample in x.view(-1, 3)]
    )
    torch.testing.assert_close(traces, jacobians.diagonal(dim1=-2, dim2=-1).sum(dim=-1).view(shape))


def test_the_estimated_divergence_is_unbiased():
    x = torch.randn(3, dtype=torch.float64).repeat(20_000, 1)
    solver = DensitySolver(
        divergence="hutchinson", num_probes=2, generator=torch.Generator().manual_seed(0)
    )
    _, estimates = divergence(field, x, solver.probes(x))
    _, exact = divergence(field, x[0], DensitySolver(divergence="exact").probes(x[0]))
    error = STANDARD_ERRORS * estimates.std() / math.sqrt(len(estimates))
    assert (estimates.mean() - exact).abs() < error
    # more probes, less variance
    _, more = divergence(field, x, DensitySolver(divergence="hutchinson", num_probes=32).probes(x))
    assert more.std() == pytest.approx(estimates.std().item() / 4, rel=0.1)


def test_the_estimate_is_exact_where_entries_do_not_mix():
    x = torch.randn(7, 5)
    _, estimates = divergence(torch.sin, x, DensitySolver(divergence="hutchinson").probes(x))
    torch.testing.assert_close(estimates, x.cos().sum(dim=-1))


def test_the_divergence_is_exact_for_narrow_samples_by_default():
    def probes(width, **kwargs):
        return len(DensitySolver(**kwargs).probes(torch.randn(3, width)))

    assert (probes(16), probes(17)) == (16, 1)
    assert (probes(16, divergence="hutchinson", num_probes=3), probes(17, num_probes=3)) == (3, 3)
    assert (probes(17, divergence="exact"), probes(4, num_probes=9)) == (17, 4)


def gaussian_flow(std, asked=None):
    """From N(0, std² I), its samples scaled by 2, to N(0, 9 I): the standard deviation grows evenly
    while time falls."""

    def velocity(x, time):
        if asked is not None:
            asked.append(float(time))
        return (2 * std - 3) / 5 * x / (3 + (2 * std - 3) * (time - 1) / 5)

    return FlowToNoise(velocity, start=6.0, stop=1.0, scale=2.0, noise_std=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [*ADAPTIVE_SOLVERS, *FIXED_STEP_SOLVERS])
def test_every_solver_gives_the_density_of_a_gaussian(solver, dtype):
    std, samples = 0.2, 0.2 * torch.randn(50, 3, dtype=dtype)
    solver = DensitySolver(solver=solver, num_steps=STEPS.get(solver, 1), rtol=1e-4, atol=1e-4)
    asked = []
    expected = torch.distributions.Normal(0.0, std).log_prob(samples).sum(dim=-1)
    log_density = solver.log_density(samples, gaussian_flow(std, asked))
    assert log_density.dtype == dtype
    torch.testing.assert_close(
        log_density, expected, rtol=0, atol=0.05 if solver.solver == "euler" else 3e-3
    )
    # there is no time before the first and none after the last
    assert max(asked) == pytest.approx(6.0, abs=1e-3)
    assert 1 - 1e-5 <= min(asked) < 1.1


def test_tighter_tolerances_and_more_steps_err_less():
    samples = 0.2 * torch.randn(50, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 0.2).log_prob(samples).sum(dim=-1)

    def error(**kwargs):
        return (
            (DensitySolver(**kwargs).log_density(samples, gaussian_flow(0.2)) - expected)
            .abs()
            .max()
        )

    assert error(rtol=1e-7, atol=1e-7) < error(rtol=1e-2, atol=1e-2) / 100
    assert error(solver="midpoint", num_steps=40) < error(solver="midpoint", num_steps=10) / 10


def test_one_hard_sample_among_many_easy_ones_is_solved_as_well():
    flow = FlowToNoise(
        lambda x, t: -x + (10 * x).sin() * (x > 5), start=0.0, stop=1.0, scale=1.0, noise_std=1.0
    )
    easy, hard = (
        torch.zeros(500, 1, dtype=torch.float64),
        torch.tensor([[9.0]], dtype=torch.float64),
    )
    solver = DensitySolver(rtol=1e-5, atol=1e-5)
    together = solver.log_density(torch.cat((easy, hard)), flow)[-1:]
    reference = DensitySolver(rtol=1e-7, atol=1e-7).log_density(hard, flow)
    torch.testing.assert_close(together, reference, rtol=0, atol=5e-3)


def test_a_flow_that_no_steps_are_short_enough_for():
    flow = FlowToNoise(
        lambda x, t: x / (t - 0.3) ** 2, start=0.0, stop=1.0, scale=1.0, noise_std=1.0
    )
    with pytest.raises(
        FloatingPointError,
        match="solver 'dopri5' needs too short steps, or more than 5000 evaluations, for rtol=",
    ):
        DensitySolver().log_density(torch.ones(3, 2), flow)
    flow.velocity = lambda x, t: x * math.nan
    with pytest.raises(FloatingPointError, match="if weights and conditions are finite"):
        DensitySolver().log_density(torch.ones(3, 2), flow)


def test_a_flow_that_takes_too_many_evaluations(monkeypatch):
    monkeypatch.setattr("autoregressive_diffusion_pytorch.heads.likelihood.MAX_NFE", 40)
    monkeypatch.setattr("autoregressive_diffusion_pytorch.heads.likelihood.MAX_NFE_DOUBLE", 100)
    samples, options = 0.2 * torch.randn(5, 3).double(), dict(rtol=1e-10, atol=1e-10)
    for given, most in ((samples, 100), (samples.float(), 40)):
        message = f"more than {most} evaluations, for rtol=1e-10"
        with pytest.raises(FloatingPointError, match=message):
            DensitySolver(**options).log_density(given, gaussian_flow(0.2))
    # one of fixed steps takes what it is told to
    DensitySolver(solver="euler", num_steps=200).log_density(samples, gaussian_flow(0.2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(solver="dpmpp_2m"), "solver must be one of 'dopri5', .*, got 'dpmpp_2m'"),
        (
            dict(divergence="trace"),
            "divergence must be one of 'auto', 'exact', 'hutchinson', got 'trace'",
        ),
        (dict(num_probes=0), "num_probes must be a whole number of at least 1, got 0"),
        (dict(num_steps=1.5), "num_steps must be a whole number of at least 1, got 1.5"),
        (dict(rtol=0.0), "rtol must be above 0, got 0.0"),
        (dict(atol=-1.0), "atol must be above 0, got -1.0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DensitySolver(**kwargs)
