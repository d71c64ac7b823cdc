"""Training a model of images: any dataset of images, labels and vectors, and grids of samples."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from ..data.image_files import DamagedImageError
from ..data.image_grids import labels_by_row, save_image_grid
from ..data.items import TrainingItems
from ..models.tokenizers import Tokenizer
from ..utils.rng import generator_for
from ..utils.validation import as_tensor, check_positive_int
from .loop import Part, Step, TrainingLoop
from .together import attempt, by_main, one_line, together
from .trainer import Trainer
from .trial import check_dataset, first_batch, try_folders

PER_SAMPLE_ARGUMENTS = {"labels", "cond", "cond_mask", "guidance_scale"}  # of `sample`


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
        check_positive_int(save_results_every=save_results_every, num_samples=num_samples)
        if "batch_size" in (sample_kwargs or {}):
            raise ValueError("sample_kwargs must not hold 'batch_size': num_samples says it")

        def as_items(name: str, dataset: Dataset) -> TrainingItems:
            check_dataset(name, dataset, self.item)
            sizes = (getattr(model, name, None) for name in ("image_size", "channels"))
            return TrainingItems(dataset, *sizes, name=name)

        if validation_dataset is not None:
            validation_dataset = as_items("validation_dataset", validation_dataset)
        folder = Path(results_folder)
        self.grids = SampleGrids(folder, save_results_every, num_samples, sample_kwargs or {})
        super().__init__(
            model,
            dataset=as_items("dataset", dataset),
            validation_dataset=validation_dataset,
            **kwargs | dict(parts=[self.grids, *kwargs.get("parts", ())]),
        )
        if validation_dataset is not None:
            self._try_range("validation_dataset", validation_dataset)
        self.grids.try_out(self)
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
        self.grids.save(self)


class SampleGrids(Part):
    """Draws a grid of samples every some steps and at the end. Arguments as of `ImageTrainer`."""

    def __init__(self, folder: Path, every: int, num_samples: int, sample_kwargs: dict):
        self.folder = folder
        self.every = every
        self.num_samples = num_samples
        self.sample_kwargs = sample_kwargs

    def start(self, trainer: TrainingLoop) -> None:
        """Draws the grid of a step at which the run before was stopped, with no time to."""
        pending = False
        if trainer.is_main and trainer.is_due(self.every):
            pending = not self.path(trainer.step).exists()
        (pending,) = broadcast_object_list([pending])
        if pending:
            self._attempt(trainer)

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        if step.finished or (trainer.step % self.every == 0 and not step.stopped):
            self._attempt(trainer)

    def _attempt(self, trainer: TrainingLoop) -> None:
        attempt(trainer, f"the grid of step {trainer.step}", lambda: self.save(trainer))

    def path(self, step: int) -> Path:
        return self.folder / f"results.{step}.png"

    def save(self, trainer: TrainingLoop) -> None:
        """Draws a grid with the averaged weights; the processes share it.

        If it fails in one process, all raise.
        """
        accelerator = trainer.accelerator

        def draw() -> Tensor:
            with trainer.averaged_model() as model:
                return model.sample(**self._sampling(trainer)).contiguous()

        # the parts of a sharded model wait for each other
        images = draw() if accelerator.is_fsdp2 else together(accelerator, draw)
        images = accelerator.gather(images)[: self._count(trainer)]
        path = self.path(trainer.step)
        _, columns, row_names = self._layout
        by_main(accelerator, lambda: save_image_grid(images, path, columns, row_names))

    def try_out(self, trainer: TrainingLoop) -> None:
        """Tries the arguments of `sample`, and draws a first token if the model draws tokens.

        Raises:
            TypeError: if the model has no `sample` or does not know them.
            ValueError: if it refuses them.
        """
        model, accelerator = trainer.ema.ema_model, trainer.accelerator
        if not hasattr(model, "sample"):
            raise TypeError(
                "model must have sample(batch_size=…, generator=…) for the grids of samples, got a "
                f"{type(model).__name__} (Trainer trains models without)"
            )
        with trainer.averaged_model() as model:
            try:
                arguments = self._sampling(trainer)
            except DamagedImageError:  # which counts when its turn comes
                return
            try:
                if trainer.config is None or not hasattr(model, "stream"):  # of one's own
                    inspect.signature(model.sample).bind(**arguments)
                else:
                    # compiling takes minutes, and ends nothing where it fails
                    arguments = {name: arguments[name] for name in arguments.keys() - {"compile"}}
                    tokens = model.stream(**arguments)
                    if not accelerator.is_fsdp2:
                        next(tokens)
            except (ValueError, TypeError, RuntimeError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"sample_kwargs do not fit the model: {one_line(error)}") from error

    def _count(self, trainer: TrainingLoop) -> int:
        """The number of images in a grid."""
        if not hasattr(self, "_layout"):
            self._layout = self.layout(trainer)
        conditions = self._layout[0]
        return len(next(iter(conditions.values()))) if conditions else self.num_samples

    def _sampling(self, trainer: TrainingLoop) -> dict[str, Any]:
        """This process's arguments of `sample`."""
        accelerator, count = trainer.accelerator, self._count(trainer)
        device, process = accelerator.device, accelerator.process_index
        share = math.ceil(count / accelerator.num_processes)
        # the same number in each process, to be gathered
        own = torch.arange(process * share, (process + 1) * share).clamp(max=count - 1)
        kwargs = {name: given[own].to(device) for name, given in self._layout[0].items()}
        kwargs |= self.sample_kwargs
        if accelerator.num_processes > 1:
            for name in PER_SAMPLE_ARGUMENTS & self.sample_kwargs.keys():
                kwargs[name] = _own_part(kwargs[name], own, count)
        generator = torch.Generator(device).manual_seed(process)
        if trainer.config is not None:  # a model of this library
            # a grid does not depend on the number of processes
            generator = [generator_for(0, i, device=device) for i in own.tolist()]
            if accelerator.mixed_precision == "bf16" and not accelerator.is_fsdp2:
                kwargs = dict(precision="bf16") | kwargs
        return dict(batch_size=share, generator=generator) | kwargs

    def layout(
        self, trainer: TrainingLoop
    ) -> tuple[dict[str, Tensor], int | None, list[str] | None]:
        """Labels and vectors of a grid, its number of columns, and the names of its rows."""
        conditions = _conditions_of_first(trainer, 1)
        if not conditions or {"labels", "cond"} & self.sample_kwargs.keys():
            return {}, None, None
        num_classes = getattr(trainer.unwrapped_model, "num_classes", None)
        if conditions.keys() != {"labels"} or num_classes is None:
            return _conditions_of_first(trainer, self.num_samples), None, None
        labels, columns = labels_by_row(num_classes, self.num_samples)
        names = trainer.dataset.classes or []
        names = names if len(names) == num_classes else list(map(str, range(num_classes)))
        return dict(labels=labels), columns, [names[i] for i in labels[::columns]]


def _conditions_of_first(trainer: TrainingLoop, count: int) -> dict[str, Tensor]:
    """Labels and vectors of the first items of the dataset."""
    batch = first_batch(trainer, trainer.dataset, count)
    return {name: part for name, part in batch.items() if name not in ("images", "latents")}


def _own_part(given: Any, own: Tensor, count: int) -> Any:
    """This process's part of an argument of `count` images; what is one for all stays."""
    tensor = as_tensor("sample_kwargs", given)
    if tensor.ndim == 0 or len(tensor) == 1:
        return given
    return tensor.repeat_interleave(count // len(tensor), dim=0)[own.to(tensor.device)]
