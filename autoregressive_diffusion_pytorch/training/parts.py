"""The parts of every training: validation and checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch.utils.data import Dataset

from ..data.order import batches_of
from ..utils.modes import evaluating
from ..utils.rng import preserved_rng, rng_state
from .checkpoints import (
    finish_interrupted,
    list_checkpoints,
    newest_checkpoint,
    remove_old_checkpoints,
    validation_loss,
    write_checkpoint,
)
from .loop import Part, Step, TrainingLoop
from .state import TrainingState


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
            trainer.accelerator.log(dict(validation_loss=self.loss), step=trainer.step)

    @torch.no_grad()
    def compute(self, trainer: TrainingLoop) -> float:
        """The mean over all items; with FSDP over as many as divide evenly among the processes."""
        accelerator = trainer.accelerator
        device, processes = accelerator.device, accelerator.num_processes
        length = len(self.dataset)
        if accelerator.is_fsdp2:  # the parts of a sharded model work together
            length = max(length // processes * processes, processes)
        own = range(accelerator.process_index, length, processes)
        items = [i % len(self.dataset) for i in own]
        total, count = torch.zeros((), device=device), 0
        model = trainer.ema.ema_model
        batches = batches_of(self.dataset, items, trainer.batch_size, **trainer.dataloader_kwargs)
        with preserved_rng(device), evaluating(list(model.modules())), closing(batches):
            set_seed(trainer.seed, device_specific=True)
            for batch in batches:
                size = len(next(iter(batch.values())))
                with accelerator.autocast():
                    total += size * trainer.loss(model, trainer.to_device(batch)).float()
                count += size
        sums = torch.stack((total, torch.full_like(total, count)))
        total, count = accelerator.reduce(sums, "sum").tolist()
        return total / count

    def state(self) -> dict[str, Any]:
        return dict(best_loss=self.best_loss)

    def load_state(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]


class Checkpoints(Part):
    """Saves the training every some steps and at its end, each time after a validation.

    Args:
        folder: holds one folder per checkpoint, `checkpoint.STEP`.
        every: steps between them.
        keep_last: newest checkpoints to keep, besides that with the lowest validation loss; None
            keeps all.
        validation: runs before each.
    """

    def __init__(self, folder: Path, every: int, keep_last: int | None, validation: Validation):
        self.folder = folder
        self.every = every
        self.keep_last = keep_last
        self.validation = validation
        self.training_state: TrainingState  # set by the trainer, when it has made its parts

    def check_is_new(self) -> None:
        if there := list_checkpoints(self.folder):
            raise FileExistsError(
                f"checkpoints_folder {self.folder} already holds {there[-1].name}: "
                "resume = True goes on from there, another folder starts anew"
            )

    def newest(self, accelerator: Accelerator) -> Path:
        newest = None
        if accelerator.is_main_process:  # the others need not read all of it
            finish_interrupted(self.folder)
            newest = newest_checkpoint(self.folder)
        (newest,) = broadcast_object_list([newest])
        if newest is None:
            raise FileNotFoundError(f"nothing to resume: {self.folder} holds no whole checkpoint")
        return newest

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint.{step}"

    def start(self, trainer: TrainingLoop) -> None:
        """Validates the newest checkpoint if the run before was stopped at it, with no time to."""
        pending = False
        if trainer.is_main and trainer.step > 0 and trainer.step % self.every == 0:
            is_validated = validation_loss(self.path(trainer.step)) is not None
            pending = self.validation.dataset is not None and not is_validated
        (pending,) = broadcast_object_list([pending])
        if pending:
            self.save(trainer)

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        if step.is_last or trainer.step % self.every == 0:
            self.save(trainer, validate=not step.stopped)

    def summary(self, trainer: TrainingLoop) -> list[str]:
        loss, best = self.validation.loss, self.validation.best_loss
        return [] if loss is None else [f"validation loss {loss:.4f}, at best {best:.4f}"]

    def save(self, trainer: TrainingLoop, validate: bool = True) -> Path:
        self.validation.loss = None
        if validate:
            self.validation.run(trainer)
        states = {name: value for part in trainer.parts for name, value in part.state().items()}
        write = self.training_state.collect(
            step=trainer.step,
            num_images=len(trainer.dataset),
            images_seen=trainer.items_seen,
            skipped_steps=trainer.skipped_steps,
            **states,
            random_states=gather_object([rng_state(trainer.accelerator.device)]),
        )

        def write_and_remove() -> None:
            loss = self.validation.loss
            write_checkpoint(self.folder, trainer.step, write, validation_loss=loss)
            if self.keep_last is not None:
                remove_old_checkpoints(self.folder, self.keep_last, up_to=trainer.step)

        write_by_main(trainer.accelerator, write_and_remove)
        trainer.checkpoint = self.path(trainer.step)
        return trainer.checkpoint

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
        accelerator, states = trainer.accelerator, progress["random_states"]
        processes = accelerator.num_processes
        if len(states) == processes:
            trainer.rng_state = states[accelerator.process_index]
        else:
            how = f"saved by {len(states)} processes, resumed by {processes}"
            trainer.say(f"{how}: the noise will be another")
            with preserved_rng(accelerator.device):
                set_seed(trainer.seed + trainer.step, device_specific=True)
                trainer.rng_state = rng_state(accelerator.device)


def write_by_main(accelerator: Accelerator, write: Callable[[], object]) -> None:
    """Lets the main process write; all processes raise its error, and none waits for it."""
    fault = None
    if accelerator.is_main_process:
        try:
            write()
        except OSError as error:
            if accelerator.num_processes == 1:
                raise
            fault = str(error)
    (fault,) = broadcast_object_list([fault])
    if fault is not None:
        raise OSError(fault)
