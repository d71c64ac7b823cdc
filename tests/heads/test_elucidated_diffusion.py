import math

import pytest
import torch
from helpers import FormulaNet, assert_mean, assert_std, stir

from autoregressive_diffusion_pytorch import ElucidatedDiffusion
from autoregressive_diffusion_pytorch.heads.solvers import SOLVERS

SIGMA_DATA = 0.5


def gaussian_head(mean, std, **kwargs):
    """A head whose denoiser is the ideal one of N(mean, std²): its network is F of eq. 7, solved
    for D = E[token | noised]."""

    def formula(scaled, times, cond):
        sigma = (4 * times).exp()
        variance = sigma**2 + SIGMA_DATA**2
        noised = scaled * variance.sqrt()
        ideal = (std**2 * noised + sigma**2 * mean) / (std**2 + sigma**2)
        return (ideal - SIGMA_DATA**2 / variance * noised) / (sigma * SIGMA_DATA / variance.sqrt())

    head = ElucidatedDiffusion(2, 1, width=1, depth=1, sigma_data=SIGMA_DATA, **kwargs)
    head.net = FormulaNet(formula)
    return head


def test_preconditioned_network_at_zero_output_is_c_skip_times_x():
    head = ElucidatedDiffusion(4, 6, depth=2, width=16)
    x = torch.randn(3, 4)
    for sigma in (0.1, 1.0, 30.0):
        modulation = head.net.modulate(torch.tensor(math.log(sigma) / 4), torch.randn(3, 6))
        torch.testing.assert_close(
            head.denoised(x, sigma, modulation, 0.7), 0.7**2 / (sigma**2 + 0.7**2) * x
        )


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 50.0])
def test_preconditioning_keeps_variances_at_one(sigma, monkeypatch):
    # Karras et al., appendix B.6: input and target of the network have unit variance when the data
    # has sigma_data
    head = ElucidatedDiffusion(
        4, 6, depth=1, width=8, sigma_data=0.7, P_mean=math.log(sigma), P_std=1e-9
    )
    seen = []
    monkeypatch.setattr(
        head.net,
        "denoise",
        lambda noised, modulation: seen.append(noised) or torch.zeros_like(noised),
    )
    losses = head(0.7 * torch.randn(20_000, 4), torch.zeros(20_000, 6))
    assert_std(seen[0].flatten(), 1.0)
    assert_mean(losses, 1.0)  # of a network that says nothing, the variance of its target


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_loss_of_the_ideal_denoiser_at_one_noise_level(sigma):
    # the error left is the posterior variance of the token, sigma² std² / (sigma² + std²)
    std = 0.8
    head = gaussian_head(0.3, std, P_mean=math.log(sigma), P_std=1e-9)
    losses = head(0.3 + std * torch.randn(40_000, 2), torch.zeros(40_000, 1))
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    assert_mean(losses, weight * sigma**2 * std**2 / (sigma**2 + std**2))


def test_loss_of_the_ideal_denoiser_over_the_noise_distribution():
    std, P_mean, P_std = 0.8, -1.0, 1.4
    head = gaussian_head(0.3, std, P_mean=P_mean, P_std=P_std)
    losses = head(0.3 + std * torch.randn(40_000, 2), torch.zeros(40_000, 1))
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    sigma = (P_mean + P_std * z).exp()
    loss = (sigma**2 + SIGMA_DATA**2) / SIGMA_DATA**2 * std**2 / (sigma**2 + std**2)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)
    assert_mean(losses, torch.trapezoid(density * loss, z).item())


def test_noise_levels_of_training_are_log_normal(monkeypatch):
    head = gaussian_head(0.0, 1.0, P_mean=-0.7, P_std=1.6)
    seen = []
    modulate_time = head.net.modulate_time
    monkeypatch.setattr(
        head.net, "modulate_time", lambda times: seen.append(times) or modulate_time(times)
    )
    head(torch.zeros(20_000, 2), torch.zeros(20_000, 1))
    ln_sigma = 4 * seen[0].flatten()
    assert_mean(ln_sigma, -0.7)
    assert_std(ln_sigma, 1.6)


@pytest.mark.parametrize(
    ("kwargs", "num_steps"),
    [
        (dict(solver="euler"), 800),
        (dict(solver="heun"), 100),
        (dict(solver="dpmpp_2m"), 100),
        (dict(S_churn=40.0, S_noise=1.0), 100),
    ],
    ids=["euler", "heun", "dpmpp_2m", "stochastic-heun"],
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampler_with_the_ideal_denoiser(kwargs, num_steps, temperature):
    head = gaussian_head(0.3, 0.8, num_sample_steps=num_steps, **kwargs)
    samples = head.sample(torch.zeros(20_000, 1), temperature=temperature)
    # what the schedule leaves out: a share (std / sigma_max)² of the mean, and half of that of the
    # spread
    assert_mean(samples, 0.3, extra=0.3 * 0.0064)
    assert_std(samples, 0.8 * temperature, extra=0.8 * 0.0032 + 0.002)


def test_the_solver_is_stochastic_if_there_is_churn():
    def head(**kwargs):
        return ElucidatedDiffusion(4, 6, depth=1, width=8, **kwargs)

    assert head().solver == "dpmpp_2m"
    assert head(S_churn=1.0).solver == "heun"
    assert head(S_churn=1.0).num_evaluations() == head().num_evaluations(solver="heun")
    with pytest.raises(ValueError, match="S_churn above 0 needs the solver 'heun', got 'euler'"):
        head(S_churn=1.0, solver="euler")


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_a_denoised_token_from_the_highest_level(solver):
    head = stir(ElucidatedDiffusion(4, 6, depth=2, width=16, solver=solver))
    z = torch.randn(3, 6)
    sample = head.sample(z, num_steps=1, generator=torch.Generator().manual_seed(0))
    noise = 10.0 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    modulation = head.net.modulate(torch.full((3,), math.log(10.0) / 4), z)
    torch.testing.assert_close(
        sample, head.denoised(noise, 10.0, modulation, 0.5), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_clamping_holds_samples_but_never_the_training(solver):
    far, near, across = (
        gaussian_head(mean, 0.4, clamp_during_sampling=c, solver=solver)
        for mean, c in ((3, False), (3, True), (0.8, True))
    )
    cond = torch.zeros(100, 1)
    assert far.sample(cond).mean() > 2.5
    assert near.sample(cond).abs().max() <= 1
    assert across.sample(cond).abs().max() <= 1
    # the loss of the ideal denoiser stays small though its tokens lie outside [-1, 1]
    losses = near(3.0 + 0.4 * torch.randn(100, 2), cond)
    assert losses.mean() < 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(sigma_min=0.0), "sigma_min"),
        (dict(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max, got 2.0 and 1.0"),
        (dict(sigma_data=0.0), "sigma_data must be above 0, got 0.0"),
        (dict(rho=-1.0), "rho must be above 0, got -1.0"),
        (dict(P_std=0.0), "P_std must be above 0, got 0.0"),
        (dict(S_churn=-1.0), "S_churn must be at least 0, got -1.0"),
        (
            dict(solver="euler_maruyama"),
            "solver must be one of 'dpmpp_2m', 'euler', 'heun', got 'euler_maruyama'",
        ),
    ],
)
def test_bad_constants(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ElucidatedDiffusion(4, 6, depth=1, width=8, **kwargs)
