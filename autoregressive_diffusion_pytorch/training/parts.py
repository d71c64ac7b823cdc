"""The parts of every training: validation and checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from ..data.order import batches_of
from ..utils.manifests import newest_checkpoint, validation_loss
from ..utils.rng import preserved_rng, rng_state, seed_process
from .checkpoints import add_facts, finish_interrupted, remove_old_checkpoints, write_checkpoint
from .loop import Part, Step, TrainingLoop
from .state import TrainingState
from .together import attempt, by_main, together


class Validation(Part):
    """The loss of the averaged weights on held-out items, with the same noise each time.

    Args:
        dataset: the items; without any there is no validation.
    """

    def __init__(self, dataset: Dataset | None):
        self.dataset = dataset
        self.loss: float | None = None  # of the last checkpoint
        self.best_loss = math.inf

    def run(self, trainer: TrainingLoop) -> None:
        """Computes and logs the loss."""
        self.loss = None if self.dataset is None else self.compute(trainer)
        if self.loss is not None:
            self.best_loss = min(self.best_loss, self.loss)
            trainer.log_values(dict(validation_loss=self.loss))

    def compute(self, trainer: TrainingLoop) -> float:
        """The mean over all items; with FSDP over as many as divide evenly among the processes.

        If it fails in one process, all raise.
        """
        accelerator = trainer.accelerator
        processes = accelerator.num_processes
        length = len(self.dataset)
        if accelerator.is_fsdp2:  # the parts of a sharded model work together
            length = max(length // processes * processes, processes)
        own = range(accelerator.process_index, length, processes)
        items = [i % len(self.dataset) for i in own]
        batches = batches_of(self.dataset, items, trainer.batch_size, **trainer.dataloader_kwargs)
        with trainer.averaged_model() as model, closing(batches):
            seed_process(trainer.seed, rank=accelerator.process_index)
            if accelerator.is_fsdp2:  # they wait for each other at each batch, and read it together
                read = partial(together, accelerator, partial(next, batches, None))
                sums = self._sums(trainer, model, iter(read, None))
            else:
                sums = together(accelerator, lambda: self._sums(trainer, model, batches))
        total, count = accelerator.reduce(sums, "sum").tolist()
        return total / count

    def _sums(self, trainer: TrainingLoop, model: Module, batches: Iterator) -> Tensor:
        """The sum of the losses of this process's items, and of how many."""
        total, count = torch.zeros((), device=trainer.accelerator.device), 0
        for batch in batches:
            with trainer.accelerator.autocast():
                loss, size = trainer.validation_sums(model, trainer.to_device(batch))
            total += loss
            count += size
        return torch.stack((total, torch.full_like(total, count)))

    def state(self) -> dict[str, Any]:
        return dict(best_loss=self.best_loss)

    def load_state(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]


class Checkpoints(Part):
    """Saves the training every some steps and at its end, and validates it then.

    Args:
        folder: holds one folder per checkpoint, `checkpoint.STEP`.
        every: steps between them.
        keep_last: newest checkpoints to keep, besides that with the lowest validation loss; None
            keeps all.
        validation: runs after each: one that fails costs no checkpoint.
    """

    def __init__(self, folder: Path, every: int, keep_last: int | None, validation: Validation):
        self.folder = folder
        self.every = every
        self.keep_last = keep_last
        self.validation = validation
        self.training_state: TrainingState  # set by the trainer, when it has made its parts

    def newest(self, accelerator: Accelerator) -> Path | None:
        """The newest whole checkpoint, None if there is none."""
        newest = None
        if accelerator.is_main_process:  # the others need not read all of it
            finish_interrupted(self.folder)
            newest = newest_checkpoint(self.folder)
        (newest,) = broadcast_object_list([newest])
        return newest

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint.{step}"

    def start(self, trainer: TrainingLoop) -> None:
        """Validates the newest checkpoint if the run before was stopped at it, with no time to."""
        pending = False
        if trainer.is_main and trainer.is_due(self.every):
            is_validated = validation_loss(self.path(trainer.step)) is not None
            pending = self.validation.dataset is not None and not is_validated
        (pending,) = broadcast_object_list([pending])
        if pending:
            self._validate(trainer)
            self._remove_old(trainer)

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        if step.is_last or trainer.step % self.every == 0:
            self.save(trainer, validate=not step.stopped)

    def summary(self, trainer: TrainingLoop) -> list[str]:
        loss, best = self.validation.loss, self.validation.best_loss
        return [] if loss is None else [f"validation loss {loss:.4f}, at best {best:.4f}"]

    def save(self, trainer: TrainingLoop, validate: bool = True) -> Path:
        self.validation.loss = None
        states = {name: value for part in trainer.parts for name, value in part.state().items()}
        write = self.training_state.collect(
            step=trainer.step,
            num_images=len(trainer.dataset),
            images_seen=trainer.items_seen,
            skipped_steps=trainer.skipped_steps,
            **states,
            random_states=gather_object([rng_state(trainer.accelerator.device)]),
        )
        by_main(
            trainer.accelerator,
            lambda: write_checkpoint(self.folder, trainer.step, write, validation_loss=None),
        )
        trainer.checkpoint = self.path(trainer.step)
        if validate and self.validation.dataset is not None:
            self._validate(trainer)
        self._remove_old(trainer)
        return trainer.checkpoint

    def _validate(self, trainer: TrainingLoop) -> None:
        """Adds the validation loss to the manifest of the step's checkpoint."""

        def validate() -> None:
            self.validation.run(trainer)
            note = partial(add_facts, self.path(trainer.step), validation_loss=self.validation.loss)
            by_main(trainer.accelerator, note)

        attempt(trainer, f"the validation of step {trainer.step}", validate)

    def _remove_old(self, trainer: TrainingLoop) -> None:
        if self.keep_last is not None:
            remove = partial(remove_old_checkpoints, self.folder, self.keep_last, trainer.step)
            what = "the removal of old checkpoints"
            attempt(trainer, what, lambda: by_main(trainer.accelerator, remove))

    def load(self, trainer: TrainingLoop, folder: Path) -> None:
        progress = self.training_state.load(folder)
        trainer.step = progress["step"]
        before, now = progress["num_images"], len(trainer.dataset)
        if before != now:
            warnings.warn(
                f"the dataset holds {now} {trainer.item}s, {before} when the checkpoint was "
                "written: "
                "they come in another order than they would have",
                stacklevel=4,
            )
        trainer.items_seen = progress["images_seen"]
        trainer.skipped_steps = progress["skipped_steps"]
        for part in trainer.parts:
            part.load_state(progress)
        # the state was saved before this checkpoint was validated
        loss = validation_loss(folder)
        if loss is not None:
            self.validation.best_loss = min(self.validation.best_loss, loss)
        accelerator, states = trainer.accelerator, progress["random_states"]
        processes = accelerator.num_processes
        if len(states) == processes:
            trainer.rng_state = states[accelerator.process_index]
        else:
            how = f"saved by {len(states)} processes, resumed by {processes}"
            trainer.say(f"{how}: the noise will be another")
            with preserved_rng(accelerator.device):
                seed_process(trainer.seed, trainer.step, rank=accelerator.process_index)
                trainer.rng_state = rng_state(accelerator.device)
