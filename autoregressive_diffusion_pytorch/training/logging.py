"""What is logged of a training: numbers in accelerate's trackers, and a warning at loss spikes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

from ..utils.modes import evaluating
from ..utils.rng import preserved_rng
from .loop import Part, Step, TrainingLoop
from .together import one_line

logger = logging.getLogger(__name__)


class TrainingLog(Part):
    """Logs loss, gradient norm, learning rate, speed and utilization of the device.

    Args:
        log_every: steps between entries.
    """

    def __init__(self, log_every: int):
        self.log_every = log_every
        self.losses = RunningAverage()
        self._seconds: list[float] = []  # of the steps since the last entry
        self._utilization_by_speed: float | None = None

    def start(self, trainer: TrainingLoop) -> None:
        """Opens the trackers."""
        accelerator, step = trainer.accelerator, trainer.step
        # entries after the checkpoint that this run resumes from are no part of it
        init_kwargs = dict(tensorboard=dict(purge_step=step + 1)) if step else {}
        accelerator.init_trackers("training", init_kwargs=init_kwargs)
        facts = dict(seed=trainer.seed, effective_batch_size=trainer.effective_batch_size)
        for tracker in accelerator.trackers:
            if tracker.name != "tensorboard":  # which would add another file for it
                tracker.store_init_configuration(dict(trainer.config or {}, **facts))

    def end(self, trainer: TrainingLoop) -> None:
        """Closes the trackers."""
        for tracker in trainer.accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:  # on a full disk, where another error ends the training
                logger.warning("the log is incomplete: %s", one_line(error))
        trainer.accelerator.trackers = []

    def summary(self, trainer: TrainingLoop) -> list[str]:
        return [f"loss {self.losses.average:.4f}"]

    def after_step(self, trainer: TrainingLoop, step: Step) -> None:
        self._seconds.append(step.seconds)
        is_spike = self.losses.is_spike(step.loss)
        if is_spike and trainer.is_main:
            logger.warning(
                "the loss of step %d is %.4g, far above the average of %.4g; gradient norm %.4g",
                trainer.step,
                step.loss,
                self.losses.average,
                step.gradient_norm,
            )
        if math.isfinite(step.loss):
            self.losses.add(step.loss)
        if step.is_last or is_spike or trainer.step % self.log_every == 0:
            self._write(trainer, step)

    def _write(self, trainer: TrainingLoop, step: Step) -> None:
        speed = trainer.effective_batch_size * len(self._seconds) / sum(self._seconds)
        self._seconds.clear()
        if self._utilization_by_speed is None:
            self._utilization_by_speed = self._measure(trainer)
        values = {
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "learning_rate": trainer.learning_rate_at(trainer.step - 1),
            "skipped_steps": trainer.skipped_steps,
            "loss_average": self.losses.average,
            f"{trainer.item}s_per_second": speed,
        }
        if hasattr(trainer.unwrapped_model, "metrics"):
            metrics = trainer.unwrapped_model.metrics()
            values |= {name: float(value) for name, value in metrics.items()}
        if self._utilization_by_speed > 0:
            values["utilization"] = self._utilization_by_speed * speed
        trainer.log_values(values)
        summary = f"loss {self.losses.average:.4f}, {speed:.0f} {trainer.item}s/s"
        trainer.bar.set_postfix_str(summary, refresh=False)

    def _measure(self, trainer: TrainingLoop) -> float:
        """The utilization of the devices at one item per second; 0 where it cannot be measured.

        Measured in all processes, as the parts of a sharded model work together.
        """
        accelerator = trainer.accelerator
        types = dict(bf16=torch.bfloat16, fp16=torch.float16)
        dtype = types.get(accelerator.mixed_precision, torch.float32)
        try:
            with preserved_rng(accelerator.device), accelerator.autocast():
                flops = training_flops(trainer.unwrapped_model, trainer.loss_of_last_batch)
            rate = matmul_rate(accelerator.device, dtype)
            return flops / trainer.batch_size / rate / accelerator.num_processes
        except Exception as error:  # no reason to end a training
            if trainer.is_main:
                logger.warning("the utilization is not logged, it cannot be measured: %r", error)
            return 0.0

    def state(self) -> dict[str, Any]:
        return dict(losses=asdict(self.losses))

    def load_state(self, state: dict[str, Any]) -> None:
        self.losses = RunningAverage(**state["losses"])


@dataclass
class RunningAverage:
    """The average of about the last hundred losses, and the square of their distance from it."""

    count: int = 0
    average: float = 0.0
    variance: float = 0.0

    LENGTH = 100
    SPIKE = 6.0  # standard deviations

    def add(self, loss: float) -> None:
        self.count += 1
        weight = 1 / min(self.count, self.LENGTH)
        difference = loss - self.average
        self.average += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is `SPIKE` stds above the average of at least half a `LENGTH`."""
        threshold = self.average + self.SPIKE * math.sqrt(self.variance)
        return self.count >= self.LENGTH // 2 and loss > threshold


# Model FLOPs utilization: Chowdhery et al. 2022, "PaLM" (https://arxiv.org/abs/2204.02311),
# appendix B: the operations that the model needs, recomputed ones not counted, over those that the
# device could have done in the time. What it could do is measured, not taken from a data sheet.


@torch.no_grad()
def training_flops(model: Module, forward: Callable[[Module], Tensor]) -> int:
    """FLOPs of the matrix products of a training step: three times those of `forward(model)`."""
    with evaluating(list(model.modules())), FlopCounterMode(display=False) as counter:
        forward(model)
    return 3 * counter.get_total_flops()


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a large matrix product: the best of some."""
    size = 1024 if device.type == "cpu" else 4096
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator, device=device).to(dtype).unbind()
    best = 0.0
    for _ in range(12):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
