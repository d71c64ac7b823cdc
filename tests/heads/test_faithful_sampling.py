"""The default sampler draws from the distribution that a head has learned: held to heads that are
right.

The noise levels of images and sequences are the same; those of images clamp tokens to [-1, 1] at
the end.
"""

import math
from functools import partial

import pytest
import torch
from helpers import ideal_head

from autoregressive_diffusion_pytorch import ElucidatedDiffusion, RectifiedFlow
from autoregressive_diffusion_pytorch.heads.guidance import Guidance

SIGMA_DATA = 0.5  # of the ideal heads
heads = pytest.mark.parametrize("head_class", [ElucidatedDiffusion, RectifiedFlow])
COUNT = 100_000  # a spread is known to 0.22 % (one standard error)
ERROR = 5 / math.sqrt(2 * COUNT)


def gaussian(noised, sigma, z, std):
    """The denoised token of N(z, std²)."""
    return z + std**2 / (std**2 + sigma**2) * (noised - z)


def two_modes(noised, sigma, z, mode=0.8, width=0.1):
    variance = width**2 + sigma**2
    mean = mode * torch.tanh(mode * noised / variance + z)  # z: half the logarithm of the odds
    return mean + width**2 / variance * (noised - mean)


def sample(head, z, seed=0, **kwargs):
    return head.sample(z, generator=torch.Generator().manual_seed(seed), **kwargs).squeeze(-1)


def constant(z, count=COUNT):
    return torch.full((count, 1), z, dtype=torch.float64)


@heads
@pytest.mark.parametrize(
    ("spread", "allowed"), [(0.2, 0.08), (0.5, 0.08), (1.0, 0.05), (2.0, 0.08)]
)
def test_the_spread_and_the_mean_of_a_gaussian(head_class, spread, allowed):
    std = spread * SIGMA_DATA
    tokens = sample(ideal_head(head_class, 1, partial(gaussian, std=std)), constant(0.7))
    assert tokens.std().item() / std == pytest.approx(1, abs=allowed + ERROR)
    # along a sequence an error of the mean would add up
    assert tokens.mean().item() == pytest.approx(0.7, abs=0.002 * 0.7 + 5 * std / math.sqrt(COUNT))


@heads
@pytest.mark.parametrize(
    "kwargs", [{}, dict(clamp_during_sampling=True)], ids=["sequences", "images"]
)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_two_narrow_modes(head_class, kwargs, share):
    head = ideal_head(head_class, 1, two_modes, **kwargs)
    tokens = sample(head, constant(0.5 * math.log(share / (1 - share))))
    assert ((tokens.abs() - 0.8).abs() <= 0.3).double().mean() >= 0.98
    assert (tokens > 0).double().mean().item() == pytest.approx(share, abs=0.015)


def chain_stds(head, correlation, count=10_000, length=256, guidance_scale=1.0, **kwargs):
    """The standard deviation of every 64th token of an AR(1) process whose stationary one is
    SIGMA_DATA."""
    generator = torch.Generator().manual_seed(0)
    draw = head.sampler(generator=generator, **kwargs)
    token = SIGMA_DATA * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    place = torch.full((1,), math.nan, dtype=torch.float64)
    stds = []
    for i in range(2, length + 1):
        token = draw(
            correlation * token, [Guidance(place, guidance_scale)] if guidance_scale != 1 else []
        )
        if i % 64 == 0:
            stds.append(token.std().item() / SIGMA_DATA)
    return stds


def chain_head(head_class, correlation, **kwargs):
    def denoise(noised, sigma, z):
        # without its context a token is N(0, SIGMA_DATA²)
        std = torch.where(z.isnan(), SIGMA_DATA, SIGMA_DATA * math.sqrt(1 - correlation**2))
        return gaussian(noised, sigma, z.nan_to_num(), std)

    return ideal_head(head_class, 1, denoise, **kwargs)


@heads
@pytest.mark.parametrize("correlation", [0.8, 0.9, 0.97])
def test_a_long_chain_keeps_its_spread(head_class, correlation):
    stds = chain_stds(chain_head(head_class, correlation), correlation)
    assert stds == pytest.approx([1] * 4, abs=0.05 + 5 / math.sqrt(2 * 10_000))


@heads
@pytest.mark.parametrize("correlation", [0.8, 0.97])
def test_a_guided_chain_does_not_run_away(head_class, correlation):
    for kwargs in ({}, dict(num_steps=24)):
        stds = chain_stds(
            chain_head(head_class, correlation),
            correlation,
            count=2000,
            guidance_scale=1.5,
            **kwargs,
        )
        assert max(stds) < 1.5
        assert min(stds) > 0.6


@heads
def test_a_scale_of_guidance_means_the_same_at_any_number_of_steps(head_class):
    correlation = 0.8
    head = chain_head(head_class, correlation)
    z, place = constant(0.3, 20_000), torch.full((1,), math.nan, dtype=torch.float64)
    means = {
        n: sample(head, z, guidance=[(place, 1.5)], num_steps=n).mean().item()
        for n in (6, 12, 24, 96)
    }
    assert means[96] > 1.2 * 0.3
    for n in (6, 12, 24):
        assert means[n] == pytest.approx(means[96], rel=0.05)


@pytest.mark.parametrize("spread", [0.2, 1.0, 2.0])
def test_the_sampler_does_not_depend_on_where_no_noise_begins(spread):
    stds = []
    for sigma_min in (0.002, 0.0002):
        head = ideal_head(
            ElucidatedDiffusion, 1, partial(gaussian, std=spread * SIGMA_DATA), sigma_min=sigma_min
        )
        stds.append(sample(head, constant(0.0)).std().item())
    assert stds[0] == pytest.approx(stds[1], rel=0.02)


@heads
@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler", "heun"])
def test_more_steps_come_nearer(head_class, solver):
    head = ideal_head(head_class, 1, partial(gaussian, std=0.15))
    errors = [
        abs(sample(head, constant(0.4), solver=solver, num_steps=n).std().item() / 0.15 - 1)
        for n in (8, 128)
    ]
    assert errors[1] < 0.02 + ERROR
    assert errors[1] < errors[0] + ERROR


@heads
def test_both_heads_draw_the_same_tokens(head_class):
    # they differ in their training alone
    tokens = [
        sample(ideal_head(cls, 1, two_modes), constant(0.1, 500))
        for cls in (ElucidatedDiffusion, head_class)
    ]
    torch.testing.assert_close(*tokens, rtol=1e-6, atol=1e-6)
