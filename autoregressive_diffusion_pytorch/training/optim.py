"""The optimizer, the learning rate and the moving average of a training."""

from __future__ import annotations

import math
from typing import Literal

from ema_pytorch import EMA
from torch import nn
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd
from torch.optim import AdamW


def make_optimizer(model: Module, learning_rate: float, adam_kwargs: dict | None) -> AdamW:
    """AdamW, with the weight decay of Li et al. 2024 on matrices only."""
    adam_kwargs = dict(betas=(0.9, 0.99), weight_decay=0.02) | (adam_kwargs or {})
    groups = parameter_groups(model, adam_kwargs.pop("weight_decay"))
    return AdamW(groups, lr=learning_rate, **adam_kwargs)


def make_average(model: Module, average: Module, ema_kwargs: dict | None) -> EMA:
    """The moving average of a model's weights in `average`, over n^(3/4) of n steps so far."""
    defaults = dict(update_after_step=0, update_every=1, power=0.75, use_foreach=True)
    kwargs = defaults | (ema_kwargs or {})
    return EMA(model, ema_model=average, include_online_model=False, **kwargs)


def parameter_groups(model: Module, weight_decay: float) -> list[dict]:
    """The trained parameters in groups: matrices of linear and convolution layers decay, no others.

    Biases, norms, embeddings and positions do not decay, as is usual.
    """
    layers = (nn.Linear, nn.Bilinear, _ConvNd)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, layers)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        dict(params=[p for p in trained if id(p) in matrices], weight_decay=weight_decay),
        dict(params=[p for p in trained if id(p) not in matrices], weight_decay=0.0),
    ]
    return [group for group in groups if group["params"]]


def learning_rate_at(
    step: int,
    *,
    highest: float,
    schedule: Literal["constant", "cosine"],
    warmup_steps: int,
    num_steps: int,
) -> float:
    """The learning rate of a step, counted from 0.

    It rises linearly to `highest`, then is constant, or falls to zero after the last step.
    """
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    if schedule == "constant":
        return highest
    done = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return highest * (0.5 + 0.5 * math.cos(math.pi * done))
