"""The modes in which modules sample: evaluation, torch's inference mode, and the precision that is fastest here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import Module


@contextmanager
def evaluating(modules: Sequence[Module]) -> Iterator[None]:
    """Evaluation mode inside the block; each module's own mode after it."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def inference(modules: Sequence[Module]) -> Iterator[None]:
    """Evaluation mode and torch's inference mode inside the block, and no trace of either after it."""
    try:
        with evaluating(modules), torch.inference_mode():
            yield
    finally:
        # some parts of x-transformers keep a tensor for later (ALiBi its biases), and one of inference mode would spoil training
        with torch.inference_mode(False):
            for module in modules:
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_inference():
                        module._buffers[name] = buffer.clone()


def best_precision() -> str:
    """accelerate's name of the mixed precision that is fastest here: "bf16" where there are instructions for it, else "no"."""
    from accelerate.utils import parse_flag_from_env

    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # without them a processor emulates bfloat16, slower than single precision
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if has_instructions() else "no"
