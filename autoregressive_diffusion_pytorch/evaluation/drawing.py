"""Drawing many images, and reading a dataset in batches, shared by the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from ..data.sequences import unpadded
from ..models.image import ImageAutoregressive
from ..models.sequence_model import SequenceModel
from ..utils.distributed import map_over_processes
from ..utils.modes import in_precision
from ..utils.rng import generator_for
from ..utils.validation import check_positive_int


def draw_images(
    model: ImageAutoregressive,
    count: int,
    *,
    batch_size: int,
    seed: int,
    labels: Tensor | None = None,
    only: Sequence[int] | None = None,
    **kwargs,
) -> Tensor:
    """Draws `count` images onto the CPU, `batch_size` at a time so that memory is no limit.

    Image i of a seed depends on nothing else: not on the count, the batch size or the processes of
    a distributed run, which share the batches and all get all images. With labels that holds for
    the i-th image of a label.

    Args:
        labels: (count,), of a model with classes.
        only: draw these of the `count` images alone.

    Further arguments go to `sample`.
    """
    model = in_precision(model, kwargs.get("precision") or "no")  # once, not for each batch
    indices = range(count) if only is None else only

    def draw(start: int) -> Tensor:
        batch = indices[start : start + batch_size]
        return draw_batch(model, batch, seed=seed, labels=labels, **kwargs)

    return torch.cat(map_over_processes(draw, range(0, len(indices), batch_size)))


def draw_sequences(
    model: SequenceModel,
    count: int,
    *,
    batch_size: int,
    seed: int,
    labels: Tensor | None = None,
    only: Sequence[int] | None = None,
    progress: bool = False,
    **kwargs,
) -> list[Tensor]:
    """As `draw_images`, sequences (n d) without padding; `progress` counts batches."""
    model = in_precision(model, kwargs.get("precision") or "no")
    indices = range(count) if only is None else only

    def draw(start: int) -> list[Tensor]:
        batch = indices[start : start + batch_size]
        drawn = _draw(model, batch, seed=seed, labels=labels, **kwargs)
        seq, lens = drawn if isinstance(drawn, tuple) else (drawn, None)
        lens = [seq.shape[1]] * len(seq) if lens is None else lens.tolist()
        return unpadded(seq.cpu(), lens)

    name = "sequences" if progress else None
    batches = map_over_processes(draw, range(0, len(indices), batch_size), name)
    return [seq for batch in batches for seq in batch]


def draw_batch(
    model: ImageAutoregressive,
    indices: Sequence[int],
    *,
    seed: int,
    labels: Tensor | None = None,
    **kwargs,
) -> Tensor:
    """The images of `draw_images` with these numbers, on the CPU."""
    return _draw(model, indices, seed=seed, labels=labels, **kwargs).cpu()


def _draw(
    model: Module, indices: Sequence[int], *, seed: int, labels: Tensor | None, **kwargs
) -> Tensor | tuple[Tensor, Tensor]:
    batch = batch_of(model, indices, seed=seed, labels=labels)
    return model.sample(batch.pop("batch_size"), **batch, **kwargs)


def batch_of(
    model: Module, indices: Sequence[int], *, seed: int, labels: Tensor | None = None
) -> dict[str, Any]:
    """The arguments of `sample`, or `stream`, for the images of `draw_images` with these numbers:
    how many, their labels and generators.
    """
    device = next(model.parameters()).device
    keys = [(i,) for i in indices]
    if labels is not None:
        keys = [(int(labels[i]), int((labels[:i] == labels[i]).sum())) for i in indices]
        labels = labels[torch.tensor(indices)]
    generators = [generator_for(seed, *key, device=device) for key in keys]
    return dict(batch_size=len(keys), labels=labels, generator=generators)


def dataset_batch(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Images (b c h w) of a dataset, and their labels (b,) if it has them."""
    items = (dataset[i] for i in indices)
    items = [item if isinstance(item, (tuple, list)) else (item,) for item in items]
    if len(items[0]) not in (1, 2):
        raise ValueError(
            "dataset must hold images, or pairs of an image and its label, got "
            f"{len(items[0])} things at each place"
        )
    images, *labels = zip(*items, strict=True)
    return torch.stack(images), torch.as_tensor(labels[0]) if labels else None


def map_over_batches(
    function: Callable, dataset: Dataset, batch_size: int, progress: str | None
) -> list:
    """`function(start, images, labels)` of each batch of a dataset, with a bar of this name."""
    check_positive_int(batch_size=batch_size)
    if len(dataset) == 0:
        raise ValueError("dataset must hold images, got none")

    def call(start: int):
        indices = range(start, min(start + batch_size, len(dataset)))
        return function(start, *dataset_batch(dataset, indices))

    return map_over_processes(call, range(0, len(dataset), batch_size), progress)
