"""What heads of one evaluation learn of distributions that are known."""

import math

import pytest
import torch

from autoregressive_diffusion_pytorch import EnergyScore, FlowMap

CORRELATION = 0.9
heads = pytest.mark.parametrize(
    ("head_class", "kwargs", "steps"),
    [
        pytest.param(FlowMap, dict(objective="lsd"), 600, id="flow-map"),
        pytest.param(EnergyScore, {}, 1000, id="energy"),
    ],
)


def trained(head, draw_batch, steps, learning_rate=4e-3):
    """A head after some steps, in evaluation mode."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        head(*draw_batch()).mean().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head.eval()


@heads
def test_a_chain_of_gaussians_keeps_its_spread_and_correlation(head_class, kwargs, steps):
    torch.manual_seed(0)

    def draw_batch(count=256):
        before = torch.randn(count, 1)
        return CORRELATION * before + math.sqrt(1 - CORRELATION**2) * torch.randn(count, 1), before

    head = trained(head_class(1, 1, width=32, depth=1, **kwargs), draw_batch, steps)
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
