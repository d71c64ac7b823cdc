"""`torch.compile` as an option that never fails: what cannot be compiled runs as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from weakref import WeakSet

import torch

_failed = WeakSet()  # functions that are not tried again: a compiler may take minutes until it fails


def compiled(function: Callable, **options) -> Callable:
    """`function` by `torch.compile`; from the first error of the compiler on, by Python, after one warning.

    The function must not change its arguments: it is called again where the compiled one failed.

    Args:
        options: of `torch.compile`.
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
        except Exception as error:  # of the compiler, in one of its many classes; one of the function itself comes again
            result = function(*args)
            _failed.add(plain)
            reason = " ".join(str(error).partition("\n\n")[0].split())
            warnings.warn(
                f"torch.compile failed, going on without it: {type(error).__name__}: {reason}", RuntimeWarning, stacklevel=2
            )
            return result

    return call
