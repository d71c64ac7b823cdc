"""What a training needs only later, tried before its first step."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import closing
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..data.image_files import DamagedImageError
from ..data.order import batches_of
from ..utils.files import check_folder
from .loop import TrainingLoop
from .together import by_main, one_line


def check_dataset(name: str, dataset: Dataset, item: str) -> None:
    """Whether a dataset has a length and gives items by their index."""
    kind = type(dataset).__name__
    expected = f"{name} must have a length and give items by their index, got a {kind}"
    if isinstance(dataset, DataLoader):
        raise TypeError(f"{expected}: give its dataset, the trainer makes the batches")
    if isinstance(dataset, dict):
        raise TypeError(f"{expected} with the keys {', '.join(map(repr, dataset))}")
    if isinstance(dataset, (str, Path)):
        raise TypeError(f"{expected}: ImageDataset reads the images of a folder")
    is_sequence = isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not is_sequence:
        raise TypeError(expected)
    if len(dataset) < 1:
        raise ValueError(f"{name} holds no {item}")


def first_batch(trainer: TrainingLoop, dataset: Dataset, count: int) -> dict[str, Tensor]:
    """The first items of a dataset, always the same, as a batch."""
    count = min(count, len(dataset))
    options = trainer.dataloader_kwargs
    collate = {name: options[name] for name in ("collate_fn",) if name in options}
    with closing(batches_of(dataset, range(count), count, **collate)) as batches:
        return next(batches)


def try_item(trainer: TrainingLoop, name: str, dataset: Dataset) -> None:
    """Gives the averaged model one item, as a validation does. All processes must call it."""
    try:
        batch = first_batch(trainer, dataset, 1)
    except DamagedImageError:  # which counts when its turn comes
        return
    with trainer.averaged_model() as model, trainer.accelerator.autocast():
        try:
            trainer.loss(model, trainer.to_device(batch))
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name} does not fit the model: {one_line(error)}") from error


def try_folders(trainer: TrainingLoop, folders: dict[str, Path]) -> None:
    """Tries to write into folders, by the names of the arguments that give them."""

    def check() -> None:
        for name, folder in folders.items():
            check_folder(name, folder)

    by_main(trainer.accelerator, check)
