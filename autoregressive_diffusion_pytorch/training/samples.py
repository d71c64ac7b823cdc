"""Samples that are drawn while a model is trained, by all processes."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn import Module

from ..data.image_files import DamagedImageError
from ..utils.rng import generator_for
from ..utils.validation import as_tensor, check_positive_int
from .loop import Part, Step, TrainingLoop
from .together import attempt, by_main, one_line, together
from .trial import first_batch

PER_SAMPLE_ARGUMENTS = {"labels", "cond", "cond_mask", "guidance_scale"}  # of `sample`


class Results(Part):
    """Writes what shows the progress of a training, every some steps and at the end.

    Args:
        folder: holds `results.STEP` and the ending.
        every: steps between them.
    """

    what: str  # for messages
    ending: str

    def __init__(self, folder: Path, every: int):
        check_positive_int(save_results_every=every)
        self.folder = folder
        self.every = every

    @abstractmethod
    def save(self, trainer: TrainingLoop) -> None:
        """Writes them now. All processes call it; if it fails in one, all raise."""

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        if step.finished or (trainer.step % self.every == 0 and not step.stopped):
            self.attempt(trainer)

    def attempt(self, trainer: TrainingLoop) -> None:
        attempt(trainer, f"{self.what} of step {trainer.step}", lambda: self.save(trainer))

    def path(self, step: int) -> Path:
        return self.folder / f"results.{step}{self.ending}"


class Samples(Results):
    """Draws samples with the averaged weights every some steps and at the end, and writes them.

    Args:
        folder, every: as of `Results`.
        num_samples: how many, unless the conditions say it.
        sample_kwargs: further arguments of `model.sample`.
    """

    def __init__(self, folder: Path, every: int, num_samples: int, sample_kwargs: dict | None):
        super().__init__(folder, every)
        check_positive_int(num_samples=num_samples)
        if "batch_size" in (sample_kwargs or {}):
            raise ValueError("sample_kwargs must not hold 'batch_size': num_samples says it")
        self.num_samples = num_samples
        self.sample_kwargs = sample_kwargs or {}
        self._conditions: dict[str, Tensor] | None = None

    @abstractmethod
    def make_conditions(self, trainer: TrainingLoop) -> dict[str, Tensor]:
        """Labels and vectors of the samples, each of as many as there are samples; or none."""

    @abstractmethod
    def draw(self, model: Module, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        """What this process draws, in tensors of a shape that is the same in all processes."""

    @abstractmethod
    def write(self, trainer: TrainingLoop, drawn: tuple[Tensor, ...], path: Path) -> None:
        """Writes the samples of all processes. The main process alone calls it."""

    def start(self, trainer: TrainingLoop) -> None:
        """Draws those of a step at which the run before was stopped, with no time to."""
        pending = False
        if trainer.is_main and trainer.is_due(self.every):
            pending = not self.path(trainer.step).exists()
        (pending,) = broadcast_object_list([pending])
        if pending:
            self.attempt(trainer)

    def files(self, step: int) -> list[Path]:
        """What is written at a step, as far as it can be."""
        return [self.path(step)]

    def save(self, trainer: TrainingLoop) -> None:
        """Draws with the averaged weights; the processes share it.

        If it fails in one process, all raise.
        """
        accelerator = trainer.accelerator

        def draw() -> tuple[Tensor, ...]:
            with trainer.averaged_model() as model:
                return self.draw(model, self._arguments(trainer))

        # the parts of a sharded model wait for each other
        drawn = draw() if accelerator.is_fsdp2 else together(accelerator, draw)
        count = self._count(trainer)
        drawn = tuple(accelerator.gather(tensor.contiguous())[:count] for tensor in drawn)
        by_main(accelerator, lambda: self.write(trainer, drawn, self.path(trainer.step)))

    def try_out(self, trainer: TrainingLoop) -> None:
        """Tries the arguments of `sample`, and draws a first token if the model draws tokens.

        Raises:
            TypeError: if the model has no `sample` or does not know them.
            ValueError: if it refuses them.
        """
        model, accelerator = trainer.ema.ema_model, trainer.accelerator
        if not hasattr(model, "sample"):
            raise TypeError(
                f"model must have sample(batch_size=…, generator=…) for {self.what}s of samples, "
                f"got a {type(model).__name__} (Trainer trains models without)"
            )
        with trainer.averaged_model() as model:
            try:
                arguments = self._arguments(trainer)
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

    def conditions(self, trainer: TrainingLoop) -> dict[str, Tensor]:
        """Those of `make_conditions`, unless `sample_kwargs` hold some."""
        if self._conditions is None:
            own = {"labels", "cond"} & self.sample_kwargs.keys()
            self._conditions = {} if own else self.make_conditions(trainer)
        return self._conditions

    def _count(self, trainer: TrainingLoop) -> int:
        """The number of samples."""
        conditions = self.conditions(trainer)
        return len(next(iter(conditions.values()))) if conditions else self.num_samples

    def _arguments(self, trainer: TrainingLoop) -> dict[str, Any]:
        """This process's arguments of `sample`."""
        accelerator, count = trainer.accelerator, self._count(trainer)
        device, process = accelerator.device, accelerator.process_index
        share = math.ceil(count / accelerator.num_processes)
        # the same number in each process, to be gathered
        own = torch.arange(process * share, (process + 1) * share).clamp(max=count - 1)
        kwargs = {name: given[own].to(device) for name, given in self.conditions(trainer).items()}
        kwargs |= self.sample_kwargs
        if accelerator.num_processes > 1:
            for name in PER_SAMPLE_ARGUMENTS & self.sample_kwargs.keys():
                kwargs[name] = _own_part(kwargs[name], own, count)
        generator = torch.Generator(device).manual_seed(process)
        if trainer.config is not None:  # a model of this library
            # the samples do not depend on the number of processes
            generator = [generator_for(0, i, device=device) for i in own.tolist()]
            if accelerator.mixed_precision == "bf16" and not accelerator.is_fsdp2:
                kwargs = dict(precision="bf16") | kwargs
        return dict(batch_size=share, generator=generator) | kwargs


def conditions_of_first(trainer: TrainingLoop, count: int) -> dict[str, Tensor]:
    """Labels and vectors of the first items of the dataset."""
    batch = first_batch(trainer, trainer.dataset, count)
    return {name: batch[name] for name in ("labels", "cond", "cond_mask") if name in batch}


def _own_part(given: Any, own: Tensor, count: int) -> Any:
    """This process's part of an argument of `count` samples; what is one for all stays."""
    tensor = as_tensor("sample_kwargs", given)
    if tensor.ndim == 0 or len(tensor) == 1:
        return given
    return tensor.repeat_interleave(count // len(tensor), dim=0)[own.to(tensor.device)]
