"""What a training reads: any dataset's items in one form, in an order without end that can be taken up anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from autoregressive_diffusion_pytorch.checks import as_height_and_width, as_tensor
from autoregressive_diffusion_pytorch.image_dataset import fit_image
from autoregressive_diffusion_pytorch.random_states import kept_random_state, seed_cpu
from autoregressive_diffusion_pytorch.stop_signals import leave_stop_signals_to_parent

# of a DataLoader: what decides which items make a batch
BATCH_ARGUMENTS = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"}


class TrainingItems(Dataset):
    """Another dataset's items as dictionaries: `images`, a tensor (c h w), and where there are any `labels`, `cond`, `cond_mask`.

    Args:
        dataset: gives images, tuples (image, label), or mappings with an image under one of `IMAGE_KEYS`, a label under one of
            `LABEL_KEYS`, and vectors under "cond" and "cond_mask". An image is a tensor (c h w), 8-bit or with values in [0, 1],
            or a Pillow image.
        image_size, channels: what Pillow images are brought to; without them there may be none.
    """

    IMAGE_KEYS = ("image", "images", "img", "pixel_values")
    LABEL_KEYS = ("label", "labels")

    def __init__(self, dataset: Dataset, image_size: int | tuple[int, int] | None = None, channels: int | None = None):
        self.dataset = dataset
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            keys = dict(images=self.IMAGE_KEYS, labels=self.LABEL_KEYS, cond=("cond",), cond_mask=("cond_mask",))
            parts = {name: next((item[key] for key in known if key in item), None) for name, known in keys.items()}
        elif isinstance(item, (tuple, list)) and len(item) in (1, 2):
            parts = dict(zip(("images", "labels"), item, strict=False))
        else:
            parts = dict(images=item)
        parts["images"] = self._to_tensor(parts["images"], item)
        return {name: as_tensor(name, part) for name, part in parts.items() if part is not None}

    def _to_tensor(self, image: Any, item: Any) -> Tensor:
        if isinstance(image, Image.Image) and self.image_size is not None and self.channels is not None:
            return fit_image(image, as_height_and_width("image_size", self.image_size), self.channels)
        if isinstance(image, Tensor):
            return image / 255 if image.dtype == torch.uint8 else image
        kind = f"with the keys {', '.join(map(repr, item))}" if isinstance(item, Mapping) else f"of type {type(item).__name__}"
        raise TypeError(
            "dataset must give images (tensors c h w, or Pillow images), pairs (image, label) or mappings with an image under one "
            f"of {', '.join(map(repr, self.IMAGE_KEYS))}; got an item {kind}"
        )

    @property
    def classes(self) -> list[str] | None:
        """The names of the labels, where the dataset knows them: as torchvision's or Hugging Face's datasets do."""
        dataset = self.dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        classes = getattr(dataset, "classes", None)
        features = getattr(dataset, "features", None)
        if isinstance(features, Mapping):
            classes = next((features[key].names for key in self.LABEL_KEYS if hasattr(features.get(key), "names")), None)
        return list(map(str, classes)) if isinstance(classes, (list, tuple)) else None


def endless_batches(
    items: Dataset, batch_size: int, *, seed: int, start: int, process_index: int, num_processes: int, **dataloader_kwargs
) -> Generator[dict[str, Tensor], None, None]:
    """A process's batches of a training that has seen `start` items, in the order of `EndlessShuffle`; to be closed after use."""
    order = EndlessShuffle(len(items), batch_size, seed=seed, start=start, process_index=process_index, num_processes=num_processes)
    return _read(items, dataloader_kwargs, batch_sampler=order)


def batches_of(
    items: Dataset, indices: Sequence[int], batch_size: int, **dataloader_kwargs
) -> Generator[dict[str, Tensor], None, None]:
    """Batches of some items in their order; what items draw at random is the same every time. To be closed after use."""
    return _read(items, dataloader_kwargs, batch_size=batch_size, sampler=[(i, i) for i in indices])


def _read(items: Dataset, dataloader_kwargs: dict, **order: Any) -> Generator[dict[str, Tensor], None, None]:
    init_worker = partial(_init_worker, dataloader_kwargs.get("worker_init_fn"))
    # the loader's own draws come from a generator of its own: the global one is the training's
    settings = dict(generator=torch.Generator()) | dataloader_kwargs | order | dict(worker_init_fn=init_worker)
    batches = iter(DataLoader(SeededItems(items), **settings))
    try:
        while True:
            with kept_random_state(torch.device("cpu")):  # items seed the generators
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    finally:
        # a process that ends with an error would wait for its workers, and those for it: the error holds on to their iterator
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()


class DeadWorkerError(RuntimeError):
    """A process that reads items for a training has died."""


@contextmanager
def dead_workers_explained() -> Iterator[None]:
    """Says of what a worker died. torch raises its error anywhere in the process that it worked for: as soon as it knows."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise DeadWorkerError(
            f"a process that reads images ended: {error} Killed means as a rule that the machine was out of memory, and fewer "
            "num_workers need less; a bus error, that /dev/shm is too small. With num_workers = 0 errors of the dataset show."
        ) from error


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    leave_stop_signals_to_parent()
    if init is not None:
        init(worker)


class SeededItems(Dataset):
    """Another dataset's items by pairs (index, seed): what they draw at random, augmentations say, follows from the seed alone.

    So it is the same in the main process as in any number of workers. The global generators are left as they are after it.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        seed_cpu(seed)
        return self.dataset[index]


class EndlessShuffle(Sampler[list[tuple[int, int]]]):
    """Batches of keys for `SeededItems` without end: all items in a random order, then all in another, and so on.

    The processes of a training share one sequence of items, of which each takes its part of every batch: together they read what
    one process with so large a batch would. What comes after `start` items does not depend on what was read before, so an order
    can be taken up anywhere.

    Args:
        num_items: size of the dataset.
        batch_size: of each process.
        seed: of the order, and of the items' seeds.
        start: items that all processes together have read.
        process_index, num_processes: which of how many processes this is.
    """

    def __init__(
        self, num_items: int, batch_size: int, *, seed: int, start: int = 0, process_index: int = 0, num_processes: int = 1
    ):
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
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.num_items, generator=generator)
        return torch.stack((order, torch.randint(2**62, (self.num_items,), generator=generator)), dim=1)
