"""Training a model of images: any dataset of images, labels and vectors, and grids of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from ..data.image_files import DamagedImageError
from ..data.image_grids import labels_by_row, save_image_grid
from ..data.items import TrainingItems
from ..models.tokenizers import Tokenizer
from .loop import TrainingLoop
from .samples import Samples, conditions_of_first
from .together import one_line
from .trainer import Trainer
from .trial import check_dataset, first_batch, try_folders


class ImageTrainer(Trainer):
    """Trains a model of images; `trainer()` runs it.

    The model needs only `model(images) -> loss` and `model.sample(batch_size=…, generator=…) ->
    images` with values in [0, 1]. Labels and vectors that the dataset gives come to both as
    `labels`, `cond` and `cond_mask`.

    Args:
        model: the model.
        dataset: any dataset with a length, such as torch's, torchvision's or Hugging Face's, of
            images, pairs (image, label) or dictionaries (see `TrainingItems`). Pillow images are
            brought to the size and channels of the model. One with labels needs a model that takes
            them. A `LatentDataset` is for a model with an autoencoder.
        validation_dataset: another of the same kind, as of `Trainer`.
        results_folder: holds the grids of samples, `results.STEP.png`.
        save_results_every: steps between grids; there is one after the last step, too.
        num_samples: images in a grid. They are always drawn with the same seed, so that grids show
            progress and not luck. With labels a grid has one row for each class (at most
            `num_samples` of them), and as many columns as make up that number. With vectors it
            shows samples for the first items of the dataset. One that cannot be drawn or written
            ends no training.
        sample_kwargs: further arguments of `model.sample` for the grids.
        kwargs: as of `Trainer`.
    """

    item = "image"

    def __init__(
        self,
        model: Module,
        *,
        dataset: Dataset,
        validation_dataset: Dataset | None = None,
        results_folder: str | Path = "./results",
        save_results_every: int = 500,
        num_samples: int = 16,
        sample_kwargs: dict | None = None,
        **kwargs,
    ):
        folder = Path(results_folder)
        self.samples = SampleGrids(folder, save_results_every, num_samples, sample_kwargs)

        def as_items(name: str, dataset: Dataset) -> TrainingItems:
            check_dataset(name, dataset, self.item)
            sizes = (getattr(model, name, None) for name in ("image_size", "channels"))
            return TrainingItems(dataset, *sizes, name=name)

        if validation_dataset is not None:
            validation_dataset = as_items("validation_dataset", validation_dataset)
        super().__init__(
            model,
            dataset=as_items("dataset", dataset),
            validation_dataset=validation_dataset,
            **kwargs | dict(parts=[self.samples, *kwargs.get("parts", ())]),
        )
        if validation_dataset is not None:
            self._try_range("validation_dataset", validation_dataset)
        self.samples.try_out(self)
        try_folders(self, dict(results_folder=folder))

    def call(self, function: Callable[..., Any], batch: dict[str, Tensor]) -> Any:
        if "latents" in batch:
            return function(**batch)
        conditions = {name: part for name, part in batch.items() if name != "images"}
        return function(batch["images"], **conditions)

    def _try_range(self, name: str, dataset: Dataset) -> None:
        """Whether the first images of a dataset are in the model's range, if it has one.

        The model itself looks at those of the first batch alone, which are trained on.
        """
        tokenizer = getattr(self.unwrapped_model, "tokenizer", None)
        if not isinstance(tokenizer, Tokenizer):
            return
        try:
            batch = first_batch(self, dataset, self.batch_size)
            if "images" in batch:
                tokenizer.check_range(batch["images"])
        except DamagedImageError:  # which counts when its turn comes
            return
        except ValueError as error:
            raise ValueError(f"{name} does not fit the model: {one_line(error)}") from error

    def save_results(self) -> None:
        """Draws a grid of samples with the averaged weights. All processes must call it."""
        self.samples.save(self)


class SampleGrids(Samples):
    """Draws a grid of samples every some steps and at the end. Arguments as of `ImageTrainer`."""

    what, ending = "the grid", ".png"
    columns: int | None = None
    row_names: list[str] | None = None

    def make_conditions(self, trainer: TrainingLoop) -> dict[str, Tensor]:
        """With labels a row for each class; with vectors those of the first items."""
        conditions = conditions_of_first(trainer, 1)
        num_classes = getattr(trainer.unwrapped_model, "num_classes", None)
        if not conditions or conditions.keys() != {"labels"} or num_classes is None:
            return conditions and conditions_of_first(trainer, self.num_samples)
        labels, self.columns = labels_by_row(num_classes, self.num_samples)
        names = trainer.dataset.classes or []
        names = names if len(names) == num_classes else list(map(str, range(num_classes)))
        self.row_names = [names[i] for i in labels[:: self.columns]]
        return dict(labels=labels)

    def draw(self, model: Module, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        return (model.sample(**arguments),)

    def write(self, trainer: TrainingLoop, drawn: tuple[Tensor, ...], path: Path) -> None:
        save_image_grid(*drawn, path, self.columns, self.row_names)
