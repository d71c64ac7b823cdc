"""How much of a machine's matrix-product rate a training uses: model FLOPs utilisation.

Chowdhery et al. 2022, "PaLM" (https://arxiv.org/abs/2204.02311), appendix B: the operations that the model needs, recomputed ones
not counted, over those that the device could have done in the time. What it could do is measured, not taken from a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

from autoregressive_diffusion_pytorch.modes import evaluating


@torch.no_grad()
def training_flops(model: Module, forward: Callable[[Module], Tensor]) -> int:
    """Floating-point operations of the matrix products in a forward and backward pass: three times those of `forward(model)`."""
    with evaluating(list(model.modules())), FlopCounterMode(display=False) as counter:
        forward(model)
    return 3 * counter.get_total_flops()


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product: the best of some, measured once for each device and type."""
    size = 1024 if device.type == "cpu" else 4096
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator, device=device).to(dtype).unbind()
    best = 0.0
    for _ in range(12):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
