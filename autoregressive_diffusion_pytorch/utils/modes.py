"""How modules run: evaluating, in inference mode, compiled, with gradients checkpointed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from weakref import WeakSet

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

_failed = WeakSet()  # functions not to compile again: a compiler may take minutes until it fails


@contextmanager
def evaluating(modules: Sequence[Module]) -> Iterator[None]:
    """Puts modules into evaluation mode inside the block, and back into their own after it."""
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
    """Evaluation and inference mode inside the block, and no trace of either after it."""
    try:
        with evaluating(modules), torch.inference_mode():
            yield
    finally:
        # x-transformers keeps some tensors (ALiBi its biases): one of inference mode would break
        # a later training
        with torch.inference_mode(False):
            for module in modules:
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_inference():
                        module._buffers[name] = buffer.clone()


def best_precision() -> str:
    """accelerate's name of the fastest precision: "bf16" where the device has instructions for
    it."""
    from accelerate.utils import parse_flag_from_env

    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # without them a processor emulates bfloat16, slower than single precision
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if has_instructions() else "no"


def compiled(function: Callable, **options) -> Callable:
    """`torch.compile(function, **options)`; the function itself, after one warning, if that fails.

    The function must not change its arguments: it is called again where the compiled one failed.
    """
    plain = getattr(function, "__func__", function)
    run = None

    def call(*args):
        nonlocal run
        if plain in _failed:
            return function(*args)
        try:
            run = run or torch.compile(function, **options)
            return run(*args)
        except Exception as error:  # the compiler has many; the function's own comes again below
            result = function(*args)
            _failed.add(plain)
            reason = " ".join(str(error).partition("\n\n")[0].split())
            warnings.warn(
                f"torch.compile failed, going on without it: {type(error).__name__}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return result

    return call


class _Checkpointed:
    """Goes before a layer's class: a wrapper around the layer would rename its parameters."""

    def forward(self, *args, **kwargs):
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


def checkpoint_gradients(layer: Module) -> None:
    """Lets a layer keep only its inputs for the backward pass, and compute the rest again.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174. The numbers stay the same, random ones too;
    a training step takes the time of one more forward pass of the layer.
    """
    if not isinstance(layer, _Checkpointed):
        layer.__class__ = _checkpointed(layer.__class__)


@cache
def _checkpointed(cls: type[Module]) -> type[Module]:
    """One class for all layers of a class: what wraps layers by their class finds them all."""
    return type(cls.__name__, (_Checkpointed, cls), {})
