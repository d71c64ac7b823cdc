"""What heads of one evaluation learn of distributions that are known."""

import math

import pytest
import torch
from helpers import train

from autoregressive_diffusion_pytorch import EnergyScore, FlowMap

CORRELATION = 0.9
heads = pytest.mark.parametrize(
    ("head_class", "kwargs", "steps", "batch_size"),
    [
        pytest.param(FlowMap, dict(objective="lsd"), 400, 128, id="flow-map"),
        pytest.param(EnergyScore, {}, 1000, 256, id="energy"),
    ],
)


@heads
def test_a_chain_of_gaussians_keeps_its_spread_and_correlation(
    head_class, kwargs, steps, batch_size
):
    torch.manual_seed(0)

    def draw_batch():
        before, noise = torch.randn(2, batch_size, 1)
        return CORRELATION * before + math.sqrt(1 - CORRELATION**2) * noise, before

    head = train(head_class(1, 1, width=32, depth=1, **kwargs), draw_batch, steps, 4e-3).eval()
    draw = head.sampler(generator=torch.Generator().manual_seed(0))
    assert head.num_evaluations() == 1
    tokens = [torch.randn(10_000, 1)]
    for _ in range(64):
        tokens.append(draw(tokens[-1]))
    before, last = tokens[-2:]
    error = 5 / math.sqrt(2 * 10_000)
    assert last.std().item() == pytest.approx(1, abs=0.05 + error)
    found = torch.corrcoef(torch.cat((before, last), dim=-1).T)[0, 1].item()
    assert found == pytest.approx(CORRELATION, abs=0.05 * CORRELATION)
