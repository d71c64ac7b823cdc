import math

import pytest
import torch

from autoregressive_diffusion_pytorch.heads.guidance import MAX_NORM, guide


@pytest.mark.parametrize("spread", [0.1, 1.0, 100.0])
def test_guiding_is_exact_at_scales_0_and_1_however_long_the_tokens_are(spread):
    other, conditional = spread * torch.randn(2, 1000, 4)
    assert torch.equal(guide(conditional, other, torch.tensor(1.0), 0.5), conditional)
    assert torch.equal(guide(conditional, other, torch.tensor(0.0), 0.5), other)


def test_guiding_moves_along_the_line_where_tokens_stay_short():
    other, conditional = 0.05 * torch.randn(2, 1000, 4)
    torch.testing.assert_close(
        guide(conditional, other, torch.tensor(3.0), 0.5), 3 * conditional - 2 * other
    )
    # a scale for each token
    scales = torch.linspace(0, 3, 1000).unsqueeze(-1)
    torch.testing.assert_close(
        guide(conditional, other, scales, 0.5), other + scales * (conditional - other)
    )


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_guided_tokens_are_not_longer_than_both_and_a_typical_one(spread):
    other, conditional = spread * torch.randn(2, 1000, 4)
    line = other + 20 * (conditional - other)
    guided = guide(conditional, other, torch.tensor(20.0), 0.5)
    longest = torch.maximum(conditional.norm(dim=-1), other.norm(dim=-1)).clamp(
        min=MAX_NORM * 0.5 * math.sqrt(4)
    )
    length = line.norm(dim=-1)
    assert (length > longest).float().mean() > 0.9
    # only their length is another
    torch.testing.assert_close(guided, line * (longest / length).clamp(max=1).unsqueeze(-1))
