"""The training loop: optimizer steps, and the parts of the training after each."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from ema_pytorch import EMA
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.order import endless_batches, explain_dead_workers
from ..utils.modes import evaluating
from ..utils.rng import preserved_rng, seed_process, set_rng_state
from .signals import StopSignals
from .together import one_line

MAX_CONSECUTIVE_SKIPS = 25  # of steps that are not finite: broken weights give no others

logger = logging.getLogger(__name__)


@dataclass
class Step:
    """The result of one optimizer step, the same in all processes."""

    loss: float
    gradient_norm: float
    out_of_time: bool = False
    stop_requested: bool = False
    seconds: float = 0.0
    finished: bool = False  # the training ends with it
    stopped: bool = False  # a signal ends it

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    @property
    def is_last(self) -> bool:
        return self.finished or self.stopped


class Part:
    """A part of a training. All processes call each method, at the same time."""

    def start(self, trainer: TrainingLoop) -> None:
        """Before the first step of a run, also of a resumed one."""

    def end(self, trainer: TrainingLoop) -> None:
        """After the last step, also after an error."""

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        """After each step; `trainer.step` counts it already."""

    def summary(self, trainer: TrainingLoop) -> list[str]:
        """What to say at the end of the training."""
        return []

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for the checkpoint, by names that are this part's own.

        Checkpoints are written before parts of the user see a step: the state is that before it.
        """
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state`, from that of all parts."""


class TrainingStopped(BaseException):
    """A training that a signal ended, saved as `checkpoint` at `step`.

    After SIGINT, such as Ctrl-C or a notebook's interrupt, it is a `KeyboardInterrupt` as well, and
    else a `SystemExit`, which ends the process with `code` as the signal would.
    """

    def __init__(self, code: int, step: int, checkpoint: Path):
        super().__init__(f"stopped after step {step} and saved as {checkpoint}")
        self.code = code
        self.step = step
        self.checkpoint = checkpoint


class TrainingInterrupted(TrainingStopped, KeyboardInterrupt):
    """A training that SIGINT ended."""


class TrainingTerminated(TrainingStopped, SystemExit):
    """A training that SIGTERM ended."""


class TrainingLoop:
    """The loop of a `Trainer`, which sets its attributes."""

    item = "item"  # what the dataset holds, for messages
    how_to_resume = "resume = True goes on from there"

    accelerator: Accelerator
    model: Module  # as accelerate prepared it
    unwrapped_model: Module
    optimizer: AcceleratedOptimizer
    ema: EMA
    dataset: Dataset
    lengths: Sequence[int] | None = None  # of the items, for batches of similar ones
    config: dict | None  # of the model
    parts: list[Part]
    dataloader_kwargs: dict
    batch_size: int
    effective_batch_size: int
    passes: int  # forward and backward ones of a step
    num_train_steps: int
    max_minutes: float | None
    max_grad_norm: float
    nonfinite: str
    seed: int
    learning_rate_at: Callable[[int], float]

    def __init__(self):
        self.step = 0
        self.items_seen = 0
        self.skipped_steps = 0
        self.rng_state: dict | None = None  # to resume with; none at the start
        self.checkpoint: Path | None = None  # the last one that this process has saved
        self._consecutive_skips = 0
        self._deadline = math.inf
        self._signals = StopSignals()

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def is_due(self, every: int) -> bool:
        """Whether something of every some steps, and of the last one, belongs to this step."""
        return self.step > 0 and (self.step % every == 0 or self.step == self.num_train_steps)

    def __call__(self) -> None:
        """Trains up to `num_train_steps`, or for `max_minutes`.

        Raises:
            TrainingStopped: after a signal, when all is saved.
            FloatingPointError: if a loss or gradient is not finite, and `nonfinite` says so.
            OSError: if a checkpoint cannot be written. What else fails beside the steps, such as a
                validation, is told, and the training goes on.
        """
        # accelerate has one number for all trainings of a process: that of the last one made
        self.accelerator.gradient_accumulation_steps = self.passes
        if self.step >= self.num_train_steps:
            with self._started_parts():  # for what the run before had no time for
                return
        self._start_rng()
        started, first_step = time.monotonic(), self.step
        self._deadline = math.inf if self.max_minutes is None else started + 60 * self.max_minutes
        batches = endless_batches(
            self.dataset,
            self.batch_size,
            seed=self.seed,
            start=self.items_seen,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            lengths=self.lengths,
            **self.dataloader_kwargs,
        )
        total = dict(total=self.num_train_steps, initial=self.step)
        bar = tqdm(**total, desc="training", disable=not self.is_main)
        with self._signals, explain_dead_workers(), closing(batches), bar as self.bar:
            with self._started_parts():
                step = self._train(batches)
        if step.stopped:
            is_interrupt = self._signals.received == "SIGINT"
            kind = TrainingInterrupted if is_interrupt else TrainingTerminated
            stopped = kind(self._signals.exit_code, self.step, self.checkpoint)
            self.say(f"{stopped}: {self.how_to_resume}")
            raise stopped
        self.say(self._summary(time.monotonic() - started, self.step - first_step))

    @contextmanager
    def _started_parts(self) -> Iterator[None]:
        try:
            for part in self.parts:
                part.start(self)
            yield
        finally:
            for part in self.parts:
                part.end(self)

    def _train(self, batches: Iterator[dict[str, Tensor]]) -> Step:
        """The steps; gives the last one."""
        while True:
            started = time.monotonic()
            step = self._train_step(batches)
            step.seconds = time.monotonic() - started
            self.step += 1
            step.finished = self.step == self.num_train_steps or step.out_of_time
            step.stopped = step.stop_requested and not step.finished
            self.bar.update()
            for part in self.parts:
                part.after_step(self, step)
            if step.is_last:
                return step

    def _start_rng(self) -> None:
        if self.rng_state is not None:
            set_rng_state(self.rng_state, self.accelerator.device)
        elif self.step == 0:
            seed_process(self.seed, rank=self.accelerator.process_index)
        self.rng_state = None

    def _train_step(self, batches: Iterator[dict[str, Tensor]]) -> Step:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_at(self.step)
        if hasattr(self.unwrapped_model, "set_progress"):
            self.unwrapped_model.set_progress(self.step / self.num_train_steps)
        losses = []
        for i in range(self.passes):
            batch = self._batch = self.to_device(next(batches))
            self.items_seen += self.batch_size * self.accelerator.num_processes
            # gradients are exchanged between processes only once, with the last pass
            with nullcontext() if i == self.passes - 1 else self.accelerator.no_sync(self.model):
                loss = self.loss(self.model, batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        step = self._all_reduce(torch.stack(losses).mean(), norm)
        # the scaler of fp16 skips steps whose gradient is not finite, and learns from them
        scaler = self.accelerator.scaler
        if step.is_finite or (scaler is not None and math.isfinite(step.loss)):
            self.optimizer.step()
        elif scaler is not None:
            scaler.update()
        if step.is_finite and not self.accelerator.optimizer_step_was_skipped:
            self.ema.update()
        self.optimizer.zero_grad()
        self._handle_nonfinite(step)
        return step

    def _all_reduce(self, loss: Tensor, norm: Tensor) -> Step:
        """The same values and decisions in all processes: one that stops must not be waited for."""
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        flags = [time.monotonic() > self._deadline, self._signals.received is not None]
        flags = loss.new_tensor(flags, dtype=torch.float32)
        values = torch.cat((torch.stack((loss.float(), norm.float())), flags))
        loss, norm, *flags = self.accelerator.reduce(values, "mean").tolist()
        return Step(loss, norm, *(flag > 0 for flag in flags))

    def _handle_nonfinite(self, step: Step) -> None:
        if step.is_finite:
            self._consecutive_skips = 0
            return
        self.skipped_steps += 1
        self._consecutive_skips += 1
        # the gradient scaler of fp16 looks for its scale so
        is_backoff = math.isfinite(step.loss) and self.accelerator.scaler is not None
        what = f"the loss {step.loss:g} and the gradient norm {step.gradient_norm:g}"
        where = f"at step {self.step + 1}"
        if self._consecutive_skips > MAX_CONSECUTIVE_SKIPS:
            before = f"as in {MAX_CONSECUTIVE_SKIPS} steps before it"
            raise FloatingPointError(f"{what} are not finite {where}, {before}")
        if self.nonfinite == "stop" and not is_backoff:
            raise FloatingPointError(
                f"{what} are not finite {where}; the weights are still those of the step before. "
                "nonfinite = 'skip' leaves such steps out; a lower learning rate may avoid them"
            )
        if not is_backoff and self.is_main:
            logger.warning("step %d is skipped: %s are not finite", self.step + 1, what)

    # what the parts use

    def call(self, function: Callable[..., Any], batch: dict[str, Tensor]) -> Any:
        """Hands a batch to a function of the model."""
        if not isinstance(batch, Mapping):
            kind = type(batch).__name__
            raise TypeError(
                f"dataset must give dictionaries of tensors, got batches that are a {kind}"
            )
        return function(**batch)

    def loss(self, model: Module, batch: dict[str, Tensor]) -> Tensor:
        return self.call(model, batch)

    def validation_sums(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The sum of the validation losses of a batch, and of how many: their mean is logged."""
        size = len(next(iter(batch.values())))
        return size * self.loss(model, batch).float(), size

    @contextmanager
    def averaged_model(self) -> Iterator[Module]:
        """The averaged model in evaluation mode, whose use leaves the training as it was."""
        model, device = self.ema.ema_model, self.accelerator.device
        try:
            with preserved_rng(device), evaluating(list(model.modules())), torch.no_grad():
                yield model
        finally:
            if self.accelerator.is_fsdp2:  # its root is left whole, for a backward pass
                model.reshard()

    def loss_of_last_batch(self, model: Module) -> Tensor:
        return self.loss(model, self._batch)

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return send_to_device(batch, self.accelerator.device, non_blocking=True)

    def log_values(self, values: dict[str, float]) -> None:
        """Gives numbers to the trackers; one that fails, of a full disk, ends no training."""
        try:
            self.accelerator.log(values, step=self.step)
        except Exception as error:
            logger.warning("step %d is not logged: %s", self.step, one_line(error))

    def say(self, sentence: str) -> None:
        if self.is_main:
            tqdm.write(sentence, file=sys.stderr)

    def _summary(self, seconds: float, steps: int) -> str:
        speed = steps * self.effective_batch_size / seconds
        facts = [
            f"{steps:,} steps in {tqdm.format_interval(seconds)}",
            f"{speed:.0f} {self.item}s/s with all that was saved and drawn",
            *(fact for part in self.parts for fact in part.summary(self)),
        ]
        if self.skipped_steps:
            facts.append(f"{self.skipped_steps} steps skipped")
        return f"{', '.join(facts)}; {self.checkpoint}"
