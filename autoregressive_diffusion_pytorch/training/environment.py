"""What a trainer takes from accelerate and torch, with errors in its own words."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DynamoBackend, parse_flag_from_env
from torch.nn import Module


def make_accelerator(kwargs: dict[str, Any]) -> Accelerator:
    """The `Accelerator` of a training.

    Raises:
        ValueError: if it cannot be had as wanted, on this machine or in this process.
    """
    _check_precision(kwargs)
    if is_initialized():
        _check_same(kwargs)
    try:
        accelerator = Accelerator(**kwargs)
    except ValueError as error:
        raise ValueError(f"accelerate_kwargs: {error}") from error
    _check_trackers(kwargs["log_with"], accelerator.log_with)
    return accelerator


def _precision(kwargs: dict[str, Any]) -> str:
    default = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return str(kwargs.get("mixed_precision") or default).lower()


def _check_precision(kwargs: dict[str, Any]) -> None:
    """Before there is an `Accelerator`: it would keep the precision for the whole process."""
    is_cpu = kwargs.get("cpu") or parse_flag_from_env("ACCELERATE_USE_CPU")
    if _precision(kwargs) == "fp16" and (is_cpu or not torch.accelerator.is_available()):
        raise ValueError("mixed_precision = 'fp16' needs a GPU, and the training runs on a CPU")


def _check_same(kwargs: dict[str, Any]) -> None:
    """accelerate keeps device, precision and compiler of a process's first `Accelerator`."""
    state = AcceleratorState()
    backend = kwargs.get("dynamo_backend") or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    wanted = dict(
        mixed_precision=_precision(kwargs),
        dynamo_backend=DynamoBackend(str(backend).upper()).value,
        cpu=bool(kwargs.get("cpu")) or state.device.type == "cpu",
    )
    there = dict(
        mixed_precision=str(state.mixed_precision),
        dynamo_backend=DynamoBackend(state.dynamo_plugin.backend).value,
        cpu=state.device.type == "cpu",
    )
    for name, value in wanted.items():
        if value != there[name]:
            raise ValueError(
                f"accelerate_kwargs: {name} must be {there[name]!r}, as of this process's first "
                f"training or Accelerator, got {value!r}: a process of its own can have another"
            )


def _check_trackers(wanted: str | list | None, found: list) -> None:
    """accelerate ignores trackers whose package is not there."""
    wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    names = {name for name in wanted if isinstance(name, str) and name != "all"}
    missing = names - {str(tracker) for tracker in found}
    if missing:
        packages = ", ".join(sorted(missing))
        raise ValueError(f"log_with: the packages of {packages} are not installed")


def copy_of(model: Module) -> Module:
    """A copy of a model, for its average.

    Raises:
        ValueError: if it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        hooks = [
            (f"model.{name}".rstrip("."), type(hook).__name__)
            for name, module in model.named_modules()
            for hook in module._forward_pre_hooks.values()
        ]
        # of torch.nn.utils.weight_norm and spectral_norm, before there were parametrizations
        old = next((hook for hook in hooks if hook[1] in ("WeightNorm", "SpectralNorm")), None)
        if old is None:
            raise ValueError(f"model cannot be copied for its average: {error}") from error
        name = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}[old[1]]
        raise ValueError(
            f"{old[0]} has torch.nn.utils.{name}, with which a model cannot be copied for its "
            f"average: torch.nn.utils.parametrizations.{name} can"
        ) from error
