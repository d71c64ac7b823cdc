import os
import random
import signal
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder

from autoregressive_diffusion_pytorch import ImageDataset
from autoregressive_diffusion_pytorch.random_states import random_state
from autoregressive_diffusion_pytorch.training_data import (
    DeadWorkerError,
    TrainingItems,
    batches_of,
    dead_workers_explained,
    endless_batches,
)

TENSOR = torch.rand(3, 4, 6)
PICTURE = Image.new("RGBA", (12, 9), (255, 0, 0, 255))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (TENSOR, dict(images=TENSOR)),
        ((TENSOR,), dict(images=TENSOR)),
        ((TENSOR, 2), dict(images=TENSOR, labels=2)),
        ([TENSOR, 2], dict(images=TENSOR, labels=2)),
        (dict(image=TENSOR, label=2, id="a"), dict(images=TENSOR, labels=2)),
        (dict(images=TENSOR, labels=2), dict(images=TENSOR, labels=2)),
        (dict(img=TENSOR), dict(images=TENSOR)),
        (dict(pixel_values=TENSOR, cond=TENSOR[0], cond_mask=None), dict(images=TENSOR, cond=TENSOR[0])),
        ((torch.full((3, 4, 6), 255, dtype=torch.uint8), 0), dict(images=torch.ones(3, 4, 6), labels=0)),
        (PICTURE, dict(images=torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 6))),
        (dict(image=PICTURE, label=1), dict(images=torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 6), labels=1)),
    ],
)
def test_items_of_many_kinds(item, expected):
    items = TrainingItems([item], (4, 6), 3)
    assert len(items) == 1
    assert items[0].keys() == expected.keys()
    for name, part in expected.items():
        assert torch.equal(items[0][name], part) if isinstance(part, torch.Tensor) else items[0][name] == part


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a.png", "got an item of type str"),
        ((TENSOR, 1, 2), "got an item of type tuple"),
        (dict(photo=TENSOR, label=1), "got an item with the keys 'photo', 'label'"),
        (np.zeros((4, 6, 3)), "got an item of type ndarray"),
    ],
)
def test_items_that_hold_no_image(item, message):
    with pytest.raises(TypeError, match=f"dataset must give images .*{message}"):
        TrainingItems([item], (4, 6), 3)[0]


def test_a_picture_needs_a_size_to_be_brought_to():
    with pytest.raises(TypeError, match="got an item of type Image"):
        TrainingItems([PICTURE])[0]


def test_sizes_of_models_of_all_kinds():
    assert TrainingItems([PICTURE], 4, 3)[0]["images"].shape == (3, 4, 4)
    with pytest.raises(TypeError, match="got an item of type Image"):
        TrainingItems([PICTURE], 4)[0]


def test_vectors_that_are_lists():
    item = TrainingItems([dict(image=TENSOR, cond=[[0.5, 1.0]], cond_mask=[True])])[0]
    assert item["cond"].tolist() == [[0.5, 1.0]]
    assert item["cond_mask"].dtype == torch.bool
    with pytest.raises(TypeError, match="labels must be a tensor, or numbers that make one, got 'rose'"):
        TrainingItems([(TENSOR, "rose")])[0]


class Attributed(list):
    """A dataset with attributes that only look like those of others."""


@pytest.mark.parametrize("attributes", [dict(features=torch.randn(3)), dict(classes=2), dict(features={}, classes=None)])
def test_other_attributes_are_no_names_of_classes(attributes):
    dataset = Attributed([TENSOR])
    vars(dataset).update(attributes)
    assert TrainingItems(dataset).classes is None


def test_names_of_the_classes(class_folders):
    assert TrainingItems([TENSOR]).classes is None
    assert TrainingItems(ImageFolder(class_folders)).classes == ["rose", "tulip"]
    assert TrainingItems(ImageDataset(class_folders, 8, labels_from_folders=True)).classes == ["rose", "tulip"]
    assert TrainingItems(ImageDataset(class_folders, 8)).classes is None


def test_names_of_the_classes_of_a_part():
    dataset = Attributed([TENSOR] * 3)
    dataset.classes = ["rose", "tulip"]
    part = Subset(Subset(dataset, [0, 1]), [1])
    assert TrainingItems(part).classes == ["rose", "tulip"]


class Noisy(Dataset):
    """Items that draw random numbers of all kinds."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(images=torch.rand(1, 2, 2), labels=index, cond=torch.tensor([random.random(), np.random.rand()]))


def read(count, length=7, batch_size=3, seed=0, start=0, process_index=0, num_processes=1, **dataloader_kwargs):
    order = dict(seed=seed, start=start, process_index=process_index, num_processes=num_processes)
    batches = endless_batches(Noisy(length), batch_size, **order, **dataloader_kwargs)
    return [next(batches) for _ in range(count)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


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
    before = random_state(torch.device("cpu"))
    read(2, num_workers=num_workers)
    list(batches_of(Noisy(3), range(3), 2, num_workers=num_workers))
    after = random_state(torch.device("cpu"))
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
    orders = [joined(read(4, length=50, batch_size=50, seed=seed))["labels"].view(4, 50) for seed in range(4)]
    assert len(torch.cat(orders).unique(dim=0)) == 16


def test_batches_of_some_items_are_the_same_each_time():
    first, second = (list(batches_of(Noisy(9), [1, 8, 3], 2)) for _ in range(2))
    assert [batch["labels"].tolist() for batch in first] == [[1, 8], [3]]
    assert all(map(same, first, second))


class Deadly(Noisy):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_gives_its_cause():
    batches = endless_batches(Deadly(4), 2, seed=0, start=0, process_index=0, num_processes=1, num_workers=1)
    with pytest.raises(DeadWorkerError, match=r"a process that reads images ended: .*Killed.* out of memory"):
        with dead_workers_explained(), closing(batches):
            next(batches)


def test_an_error_of_the_dataset_is_no_death(tmp_path):
    class Faulty(Noisy):
        def __getitem__(self, index):
            raise RuntimeError("a fault of its own")

    batches = endless_batches(Faulty(4), 2, seed=0, start=0, process_index=0, num_processes=1, num_workers=1)
    with pytest.raises(RuntimeError, match="a fault of its own") as error:
        with dead_workers_explained(), closing(batches):
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
        Pid(4), 2, seed=0, start=0, process_index=0, num_processes=1, num_workers=1, worker_init_fn=lambda worker: os.nice(1)
    )
    assert next(batches)["labels"][0] != os.getpid()
