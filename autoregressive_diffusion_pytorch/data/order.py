"""Batches of a dataset, in an endless order that a training can take up anywhere."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.rng import generator_for, preserved_rng, seed_cpu

# of a DataLoader: what decides which items make a batch
BATCH_ARGUMENTS = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"}

BUCKET = 8  # batches of items at random that are sorted by length

# Before 3.10.15, 3.11.10 and 3.12 a process that CPython forks waits for ever for its lock of all
# thread states, if another thread holds it at that moment (python/cpython#112275).
FORKS_WITH_LOCKS = sys.version_info < (3, 10, 15) or (3, 11) <= sys.version_info < (3, 11, 10)


def endless_batches(
    items: Dataset,
    batch_size: int,
    *,
    seed: int,
    start: int,
    process_index: int,
    num_processes: int,
    lengths: Sequence[int] | None = None,
    **dataloader_kwargs,
) -> Generator[dict[str, Tensor], None, None]:
    """A process's batches after `start` items, in the order of `EndlessShuffle`; to be closed."""
    share = dict(process_index=process_index, num_processes=num_processes, lengths=lengths)
    order = EndlessShuffle(len(items), batch_size, seed=seed, start=start, **share)
    return _read(items, dataloader_kwargs, batch_sampler=order)


def batches_of(
    items: Dataset, indices: Sequence[int], batch_size: int, **dataloader_kwargs
) -> Generator[dict[str, Tensor], None, None]:
    """Batches of some items in their order, with the same augmentations each time; to be closed."""
    return _read(items, dataloader_kwargs, batch_size=batch_size, sampler=[(i, i) for i in indices])


def _read(
    items: Dataset, dataloader_kwargs: dict, **order: Any
) -> Generator[dict[str, Tensor], None, None]:
    init_worker = partial(_init_worker, dataloader_kwargs.get("worker_init_fn"))
    # the loader's own draws come from a generator of its own: the global one is the training's
    settings = dict(generator=torch.Generator()) | dataloader_kwargs | order
    settings["worker_init_fn"] = init_worker
    loader = DataLoader(SeededItems(items), **settings)
    if (
        FORKS_WITH_LOCKS
        and loader.num_workers > 0
        and dist.is_available()
        and dist.is_initialized()
    ):
        # the threads of a process group take that lock when they drop what they have exchanged,
        # soon after a collective ends: without the GIL for a while, they come to their end
        time.sleep(0.2)
    batches = iter(loader)
    try:
        while True:
            with preserved_rng(torch.device("cpu")):  # items seed the generators
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    finally:
        # a process that ends with an error would wait for its workers, and those for it: the error
        # holds on to their iterator
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()


class DeadWorkerError(RuntimeError):
    """A process that reads items for a training has died."""


@contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Explains of what a worker died: torch raises its error anywhere in the main process."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise DeadWorkerError(
            f"a process that reads images ended: {error} Killed means as a rule that the machine "
            "was out of memory, and fewer num_workers need less; a bus error, that /dev/shm is too "
            "small. With num_workers = 0 errors of the dataset show."
        ) from error


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    leave_stop_signals_to_parent()
    if init is not None:
        init(worker)


def leave_stop_signals_to_parent() -> None:
    """For worker processes, which their parent ends: a signal to all of them is for the parent.

    Of SIGTERM only the first: with another one, the parent ends workers that do not end otherwise.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class SeededItems(Dataset):
    """Items of a dataset by pairs (index, seed): their augmentations follow from the seed alone.

    So they are the same in the main process as in any number of workers.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        seed_cpu(seed)
        return self.dataset[index]


class EndlessShuffle(Sampler[list[tuple[int, int]]]):
    """Endless batches of keys for `SeededItems`: all items in a random order, then in another.

    The processes of a training share one sequence of items, of which each takes its part of every
    batch: together they read what one process with so large a batch would. What comes after `start`
    items does not depend on what was read before, so an order can be taken up anywhere.

    Args:
        num_items: size of the dataset.
        batch_size: of each process.
        seed: of the order, and of the items' seeds.
        start: items that all processes together have read.
        process_index, num_processes: which of how many processes this is.
        lengths: of the items: batches are then of items of similar lengths (buckets), as far as
            each `BUCKET` batches of the random order give them.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        lengths: Sequence[int] | None = None,
    ):
        self.lengths = None if lengths is None else torch.as_tensor(lengths)
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.first = start + process_index * batch_size
        self.stride = num_processes * batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, keys = -1, None
        position = self.first
        while True:
            batch = []
            for i in range(position, position + self.batch_size):
                if i // self.num_items != epoch:
                    epoch = i // self.num_items
                    keys = self._keys(epoch)
                batch.append(tuple(keys[i % self.num_items].tolist()))
            yield batch
            position += self.stride

    def _keys(self, epoch: int) -> Tensor:
        """The items of an epoch in their order, each with its seed, (n 2)."""
        generator = generator_for(self.seed, epoch)
        order = torch.randperm(self.num_items, generator=generator)
        if self.lengths is not None:
            order = self._bucketed(order, epoch, generator)
        seeds = torch.randint(2**62, (self.num_items,), generator=generator)
        return torch.stack((order, seeds), dim=1)

    def _bucketed(self, order: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        """The same items, those of each batch of similar lengths; batches in random order."""
        # an epoch begins within the last batch of the one before
        begun = -epoch * self.num_items % self.stride
        parts = [order[:begun]]
        for window in order[begun:].split(BUCKET * self.stride):
            batches = window[self.lengths[window].argsort(stable=True)].split(self.stride)
            # the last one may be short
            shuffled = torch.randperm(len(window) // self.stride, generator=generator).tolist()
            parts += [batches[i] for i in shuffled] + list(batches[len(shuffled) :])
        return torch.cat(parts)
