"""How modules run: evaluating, in inference mode, compiled, with gradients checkpointed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from .int8 import Int8Linear, quantize_linears
from .validation import check_choice

PRECISIONS = ("no", "bf16", "int8")  # of drawing
_failed: WeakKeyDictionary[Module, set[str]] = WeakKeyDictionary()  # by module, what not to compile


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


def in_precision(model: Module, precision: str) -> Module:
    """The model, or a copy of it with weights rounded to bfloat16, or its linear layers to int8.

    A model that is such a copy comes back as it is.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision == "no":
        return model
    if precision == "bf16":
        if next(model.parameters()).dtype == torch.bfloat16:
            return model
        rounded = copy.deepcopy(model).bfloat16()
    else:
        device = next(model.parameters()).device
        if device.type != "cpu":
            raise ValueError(f"precision = 'int8' is for a model on the CPU, got one on {device}")
        if any(isinstance(module, Int8Linear) for module in model.modules()):
            return model
        rounded = copy.deepcopy(model).float()
        quantize_linears(rounded)
    # what cannot be compiled of the one is not tried again with the other
    for module, copied in zip(model.modules(), rounded.modules(), strict=True):
        _failed[copied] = _failed.setdefault(module, set())
    return rounded


@contextmanager
def without_jit_warnings() -> Iterator[None]:
    """Without the warning that `torch.jit.script` is deprecated, for code of others that calls it.

    There is nothing that a user could change.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        yield


def compiled(function: Callable, owner: Module, **options) -> Callable:
    """`torch.compile(function, **options)`; the function itself, after one warning, if that fails.

    The function must not change its arguments: it is called again where the compiled one failed. An
    error of its own comes through, and so does one of memory.

    Args:
        owner: the module that the function is of. With it the function is not compiled again, for
            a compiler may take minutes until it fails; with another one it is.
    """
    failed = _failed.setdefault(owner, set())
    name = function.__qualname__
    run = None

    def call(*args, **kwargs):
        nonlocal run
        if name in failed:
            return function(*args, **kwargs)
        try:
            run = run or torch.compile(function, **options)
            return run(*args, **kwargs)
        except Exception as error:  # the compiler has many; the function's own comes again below
            if _is_of_memory(error):
                raise
            result = function(*args, **kwargs)
            failed.add(name)
            reason = " ".join(str(error).partition("\n\n")[0].split())
            warnings.warn(
                f"torch.compile failed for {name}, going on without it: "
                f"{type(error).__name__}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return result

    return call


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that memory is out."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if "can't allocate memory" in str(error):  # of the CPU: torch has no class for it
            return True
        error = error.__cause__ or error.__context__
    return False


def checkpoint_gradients(layer: Module) -> None:
    """Lets a layer keep only its inputs for the backward pass, and compute the rest again.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174. The numbers stay the same, random ones too;
    a training step takes the time of one more forward pass of the layer.
    """
    # not a wrapper around the layer, which would rename its parameters; and one that can be pickled
    layer.forward = partial(_checkpointed_forward, layer)


def _checkpointed_forward(layer: Module, *args, **kwargs):
    forward = type(layer).forward
    if not (layer.training and torch.is_grad_enabled()):
        return forward(layer, *args, **kwargs)
    return checkpoint(forward, layer, *args, use_reentrant=False, **kwargs)
