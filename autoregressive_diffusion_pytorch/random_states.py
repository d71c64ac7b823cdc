"""States of the random number generators that a training draws from: Python's, numpy's, torch's, and the device's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def random_state(device: torch.device) -> dict:
    """The states, as tensors and plain values."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    state = dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached_gaussian),
        torch=torch.get_rng_state(),
    )
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    """Puts back what `random_state` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """What is drawn inside the block changes nothing after it."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def seed_cpu(seed: int) -> None:
    """Seeds all generators but the devices': what datasets draw their augmentations from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
