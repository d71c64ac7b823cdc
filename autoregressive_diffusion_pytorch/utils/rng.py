"""The random number generators of a process: Python's, numpy's, torch's, and the device's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

Generators = Generator | Sequence[Generator] | None


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


def randn(
    shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Normal noise of a shape, drawn where the generator is.

    With one generator per entry of the first axis, an entry does not depend on the others.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(
    shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The same, uniform in [0, 1)."""
    return _draw(torch.rand, shape, generator, device, dtype)


def _draw(function: Callable, shape, generator, device, dtype) -> Tensor:
    if isinstance(generator, Sequence):
        rows = [_draw(function, shape[1:], one, device, dtype) for one in generator]
        return torch.stack(rows)
    source = device if generator is None else generator.device
    return function(shape, generator=generator, device=source, dtype=dtype).to(device)


def seed_process(*key: int, rank: int) -> None:
    """Seeds all generators of a process: by the key, and independently in each process.

    One number is itself the seed of process 0.
    """
    seed = key[0]
    if len(key) > 1 or rank > 0:
        # not 0, which at the end of a key counts as none
        seed = int(np.random.SeedSequence((*key, rank + 1)).generate_state(1)[0])
    seed_cpu(seed)
    torch.manual_seed(seed)  # of the devices too


def generator_for(*key: int, device: torch.device | str = "cpu") -> Generator:
    """A generator whose seed follows from several numbers: other numbers, independent draws."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return Generator(device).manual_seed(seed)
