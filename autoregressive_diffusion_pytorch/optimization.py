"""What the optimiser is told: which parameters decay, and how the learning rate goes."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd


def parameter_groups(model: Module, weight_decay: float) -> list[dict]:
    """The trained parameters in groups for an optimiser: the matrices of linear and convolution layers decay, all others do not.

    Biases, norms, embeddings and positions are no maps whose size could be held down.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Bilinear, _ConvNd))}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        dict(params=[p for p in trained if id(p) in matrices], weight_decay=weight_decay),
        dict(params=[p for p in trained if id(p) not in matrices], weight_decay=0.0),
    ]
    return [group for group in groups if group["params"]]


def learning_rate_at(
    step: int, *, highest: float, schedule: Literal["constant", "cosine"], warmup_steps: int, num_steps: int
) -> float:
    """The learning rate of a step, counted from 0: linear to `highest`, then constant, or falling to zero at the last of all."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    if schedule == "constant":
        return highest
    done = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return highest * (0.5 + 0.5 * math.cos(math.pi * done))
