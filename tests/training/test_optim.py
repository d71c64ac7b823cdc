from itertools import pairwise

import pytest
from torch import nn

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.training.optim import learning_rate_at, parameter_groups


def test_only_matrices_decay():
    model = ImageAutoregressiveFlow(
        image_size=4,
        patch_size=2,
        num_classes=3,
        dim_cond=5,
        model=dict(dim=16, depth=1, heads=2, dim_head=8),
    )
    decaying, others = parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(parameter)] for parameter in decaying["params"]}
    stay = {names[id(parameter)] for parameter in others["params"]}
    assert decay | stay == set(names.values())
    assert not decay & stay
    assert "model.proj_in.weight" in decay
    assert all(name.endswith("weight") for name in decay)
    for part in ("bias", "start_token", "positions", "label"):
        assert any(part in name for name in stay), part
        assert not any(part in name for name in decay), part


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    (group,) = parameter_groups(model, 0.1)
    assert group["params"] == [model[0].weight]


def test_the_learning_rate_warms_up_and_falls():
    def rates(**kwargs):
        settings = dict(highest=1.0, schedule="constant", warmup_steps=0, num_steps=100) | kwargs
        return [learning_rate_at(step, **settings) for step in range(100)]

    cosine = rates(warmup_steps=10, schedule="cosine")
    assert cosine[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[99] < 0.001
    assert all(a >= b for a, b in pairwise(cosine[10:]))
    assert rates() == [1.0] * 100
