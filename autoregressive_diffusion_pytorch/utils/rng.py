"""The random number generators of a process: Python's, numpy's, torch's, and the device's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator


def rng_state(device: torch.device) -> dict:
    """The states of all generators, as tensors and plain values."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    keys = torch.from_numpy(keys.astype(np.int64))
    state = dict(
        python=random.getstate(),
        numpy=(name, keys, position, has_gauss, cached_gaussian),
        torch=torch.get_rng_state(),
    )
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state: dict, device: torch.device) -> None:
    """Restores what `rng_state` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restores all generators after the block."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)


def seed_cpu(seed: int) -> None:
    """Seeds all generators but the devices': what datasets draw their augmentations from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def generator_for(*key: int, device: torch.device | str = "cpu") -> Generator:
    """A generator whose seed follows from several numbers: other numbers, independent draws."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return Generator(device).manual_seed(seed)
