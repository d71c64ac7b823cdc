"""What is seen of a training in numbers: entries in accelerate's trackers, and a warning where a loss stands out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.random_states import kept_random_state
from autoregressive_diffusion_pytorch.running_average import RunningAverage
from autoregressive_diffusion_pytorch.utilization import matmul_rate, training_flops

logger = logging.getLogger(__name__)


class TrainingLog:
    """Writes the log of a training. With several processes each must call each method; the main one writes.

    Args:
        accelerator: of the training, with the trackers to log with.
        batch_size: images that a process sends through the model at once.
        images_a_step: of all processes and batches together.
        configuration: what trackers are told of the run.
    """

    def __init__(self, accelerator: Accelerator, *, batch_size: int, images_a_step: int, configuration: dict):
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.images_a_step = images_a_step
        self.configuration = configuration
        self.losses = RunningAverage()
        self._seconds: list[float] = []  # of the steps since the last entry
        self._utilization_by_speed: float | None = None

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """The trackers are open inside the block, for the steps after `step`."""
        # entries that a run wrote after the checkpoint that this one goes on from are no part of it
        init_kwargs = dict(tensorboard=dict(purge_step=step + 1)) if step else {}
        self.accelerator.init_trackers("training", init_kwargs=init_kwargs)
        for tracker in self.accelerator.trackers:
            if tracker.name != "tensorboard":  # which would add another file for it
                tracker.store_init_configuration(self.configuration)
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []

    def note(self, step: int, loss: float, gradient_norm: float, seconds: float) -> bool:
        """Takes a step in; whether its loss stands out far above the last ones."""
        self._seconds.append(seconds)
        is_spike = self.losses.is_spike(loss)
        if is_spike and self.accelerator.is_main_process:
            average = self.losses.average
            logger.warning(
                "the loss of step %d is %.4g, far above the average of %.4g; gradient norm %.4g", step, loss, average, gradient_norm
            )
        if math.isfinite(loss):
            self.losses.add(loss)
        return is_spike

    def write(self, step: int, model: Module, forward: Callable[[Module], Tensor], **values: float) -> float:
        """Writes an entry: the values, the average loss, the speed and the utilization since the last one. Gives the images/s.

        Args:
            forward: sends a batch through the model.
        """
        speed = self.images_a_step * len(self._seconds) / sum(self._seconds)
        self._seconds.clear()
        if self._utilization_by_speed is None:
            self._utilization_by_speed = self._measure(model, forward)
        values |= dict(loss_average=self.losses.average, images_per_second=speed)
        if self._utilization_by_speed > 0:
            values["utilization"] = self._utilization_by_speed * speed
        self.accelerator.log(values, step=step)
        return speed

    def _measure(self, model: Module, forward: Callable[[Module], Tensor]) -> float:
        """What an image a second uses of the devices' matrix-product rate; 0 where it cannot be told.

        Measured in all processes, as the parts of a sharded model work together.
        """
        device = self.accelerator.device
        dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(self.accelerator.mixed_precision, torch.float32)
        try:
            with kept_random_state(device), self.accelerator.autocast():
                flops = training_flops(model, forward)
            return flops / self.batch_size / matmul_rate(device, dtype) / self.accelerator.num_processes
        except Exception as error:  # no reason to end a training
            if self.accelerator.is_main_process:
                logger.warning("the utilization is not logged, it cannot be measured: %r", error)
            return 0.0
