"""Drawing many images, and reading a dataset in batches, shared by the processes of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..models.image import ImageAutoregressive
from ..utils.distributed import map_over_processes
from ..utils.rng import generator_for
from ..utils.validation import check_positive_int


def draw_images(
    model: ImageAutoregressive,
    count: int,
    *,
    batch_size: int,
    seed: int,
    labels: Tensor | None = None,
    **kwargs,
) -> Tensor:
    """Draws `count` images onto the CPU, `batch_size` at a time so that memory is no limit.

    The same seed and batch size give the same images. The processes of a distributed run share the
    batches, and all get all images: the same as one process would draw.

    Args:
        labels: (count,), of a model with classes.

    Further arguments go to `sample`.
    """
    model = rounded(model, kwargs.get("precision"))

    def draw(start: int) -> Tensor:
        stop = min(start + batch_size, count)
        return draw_batch(model, start, stop, seed=seed, labels=labels, **kwargs)

    return torch.cat(map_over_processes(draw, range(0, count, batch_size)))


def rounded(model: ImageAutoregressive, precision: str | None) -> ImageAutoregressive:
    """The model as `sample` draws with it in this precision: once, and not for each batch."""
    return copy.deepcopy(model).bfloat16() if precision == "bf16" else model


def draw_batch(
    model: ImageAutoregressive,
    start: int,
    stop: int,
    *,
    seed: int,
    labels: Tensor | None = None,
    **kwargs,
) -> Tensor:
    """The images from `start` to `stop` of `draw_images`, whose batch they are."""
    part = None if labels is None else labels[start:stop]
    generator = generator_for(seed, start, device=next(model.parameters()).device)
    return model.sample(stop - start, labels=part, generator=generator, **kwargs).cpu()


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
