import os
import random
import signal
import threading
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from autoregressive_diffusion_pytorch.data import order
from autoregressive_diffusion_pytorch.data.order import (
    DeadWorkerError,
    batches_of,
    endless_batches,
    explain_dead_workers,
)
from autoregressive_diffusion_pytorch.utils.rng import rng_state


class Noisy(Dataset):
    """Items that draw random numbers of all kinds."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(
            images=torch.rand(1, 2, 2),
            labels=index,
            cond=torch.tensor([random.random(), np.random.rand()]),
        )


def read(
    count,
    length=7,
    batch_size=3,
    seed=0,
    start=0,
    process_index=0,
    num_processes=1,
    **dataloader_kwargs,
):
    order = dict(seed=seed, start=start, process_index=process_index, num_processes=num_processes)
    batches = endless_batches(Noisy(length), batch_size, **order, **dataloader_kwargs)
    return [next(batches) for _ in range(count)]


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_each_item_once_an_epoch_in_another_order():
    labels = joined(read(14))["labels"].tolist()
    epochs = [labels[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def test_the_order_can_be_taken_up_anywhere():
    whole = joined(read(14))
    for start in (1, 6, 7, 20):
        part = joined(read(5, start=start))
        assert same(part, {name: values[start : start + 15] for name, values in whole.items()})


def test_augmentations_change_from_epoch_to_epoch_and_with_the_seed():
    batch = joined(read(14))
    images = [batch["images"][batch["labels"] == 3], joined(read(14, seed=1))["images"]]
    assert len(torch.cat(images).flatten(1).unique(dim=0)) == 6 + 42


def test_workers_read_the_same_items():
    for batch, other in zip(read(6), read(6, num_workers=2), strict=True):
        assert same(batch, other)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_generators_alone(num_workers):
    before = rng_state(torch.device("cpu"))
    read(2, num_workers=num_workers)
    list(batches_of(Noisy(3), range(3), 2, num_workers=num_workers))
    after = rng_state(torch.device("cpu"))
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert torch.equal(before["torch"], after["torch"])


def test_processes_share_the_batches_of_one():
    whole = read(4, batch_size=6)
    parts = [read(4, process_index=i, num_processes=2) for i in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert same(batch, joined([first, second]))


def test_a_batch_larger_than_the_dataset():
    batch = read(1, length=2, batch_size=5)[0]
    assert sorted(batch["labels"].tolist()[:4]) == [0, 0, 1, 1]


def test_seeds_that_are_neighbours_share_no_epoch():
    orders = [
        joined(read(4, length=50, batch_size=50, seed=seed))["labels"].view(4, 50)
        for seed in range(4)
    ]
    assert len(torch.cat(orders).unique(dim=0)) == 16


def test_batches_of_some_items_are_the_same_each_time():
    first, second = (list(batches_of(Noisy(9), [1, 8, 3], 2)) for _ in range(2))
    assert [batch["labels"].tolist() for batch in first] == [[1, 8], [3]]
    assert all(map(same, first, second))


def test_workers_start_when_the_threads_of_a_process_group_have_ended_their_work(monkeypatch):
    ended = []

    class Seeing(Noisy):
        def __getitem__(self, index):
            return dict(labels=len(ended))

    monkeypatch.setattr(order, "FORKS_WITH_LOCKS", True)
    several_processes = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True)
    monkeypatch.setattr(order, "dist", several_processes)
    threading.Timer(0.05, ended.append, [None]).start()
    with closing(batches_of(Seeing(1), [0], 1, num_workers=1)) as batches:
        assert next(batches)["labels"].item() == 1


class Deadly(Noisy):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_gives_its_cause():
    batches = endless_batches(
        Deadly(4), 2, seed=0, start=0, process_index=0, num_processes=1, num_workers=1
    )
    with pytest.raises(
        DeadWorkerError, match=r"a process that reads images ended: .*Killed.* out of memory"
    ):
        with explain_dead_workers(), closing(batches):
            next(batches)


def test_an_error_of_the_dataset_is_no_death(tmp_path):
    class Faulty(Noisy):
        def __getitem__(self, index):
            raise RuntimeError("a fault of its own")

    batches = endless_batches(
        Faulty(4), 2, seed=0, start=0, process_index=0, num_processes=1, num_workers=1
    )
    with pytest.raises(RuntimeError, match="a fault of its own") as error:
        with explain_dead_workers(), closing(batches):
            next(batches)
    assert error.type is RuntimeError


def test_a_worker_leaves_signals_to_the_process_it_works_for():
    class Pid(Noisy):
        def __getitem__(self, index):
            if self.length:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                    os.kill(os.getpid(), number)
                self.length = 0
            return dict(images=torch.zeros(1), labels=os.getpid())

    batches = endless_batches(
        Pid(4),
        2,
        seed=0,
        start=0,
        process_index=0,
        num_processes=1,
        num_workers=1,
        worker_init_fn=lambda worker: os.nice(1),
    )
    assert next(batches)["labels"][0] != os.getpid()
