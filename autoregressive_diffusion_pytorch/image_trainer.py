"""Training a model of images: the loop, the moving average of the weights, what is saved and what is seen of it."""

from __future__ import annotations

import atexit
import copy
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    broadcast_object_list,
    fsdp2_prepare_model,
    gather_object,
    send_to_device,
    set_seed,
)
from ema_pytorch import EMA
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.optim import AdamW
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from autoregressive_diffusion_pytorch.checkpoints import (
    finish_interrupted,
    list_checkpoints,
    newest_checkpoint,
    remove_old_checkpoints,
    validation_loss,
    write_checkpoint,
)
from autoregressive_diffusion_pytorch.checks import as_tensor, check_above_zero, check_choice, check_positive_int
from autoregressive_diffusion_pytorch.image_dataset import DamagedImageError
from autoregressive_diffusion_pytorch.image_grids import labels_by_row, save_image_grid
from autoregressive_diffusion_pytorch.modes import evaluating
from autoregressive_diffusion_pytorch.optimization import learning_rate_at, parameter_groups
from autoregressive_diffusion_pytorch.pretrained import Pretrained
from autoregressive_diffusion_pytorch.random_states import kept_random_state, random_state, seed_cpu, set_random_state
from autoregressive_diffusion_pytorch.running_average import RunningAverage
from autoregressive_diffusion_pytorch.stop_signals import StopSignals
from autoregressive_diffusion_pytorch.training_data import (
    BATCH_ARGUMENTS,
    TrainingItems,
    batches_of,
    dead_workers_explained,
    endless_batches,
)
from autoregressive_diffusion_pytorch.training_log import TrainingLog
from autoregressive_diffusion_pytorch.training_state import TrainingState

ONE_AN_IMAGE = {"labels", "cond", "cond_mask", "guidance_scale"}  # arguments of `sample`
MEASURED_IMAGES = 256  # for the standard deviation of the data
SKIPS_IN_A_ROW = 25  # of steps that are not finite: weights that are broken give no other any more

logger = logging.getLogger(__name__)


class TrainingStopped(SystemExit):
    """A training that a signal ended, saved as `checkpoint` at `step`. Not caught, it ends the process as the signal would."""

    def __init__(self, code: int, step: int, checkpoint: Path):
        super().__init__(code)
        self.step = step
        self.checkpoint = checkpoint


@dataclass
class Step:
    """What came of one optimiser step, the same in all processes."""

    loss: float
    gradient_norm: float
    out_of_time: bool
    stop_wished: bool

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class ImageTrainer:
    """Trains a model of images; `trainer()` runs it.

    The model needs only `model(images) -> loss` and `model.sample(batch_size=…, generator=…) -> images` with values in [0, 1].
    Labels and vectors that the dataset gives come to both as `labels`, `cond` and `cond_mask`.

    A run that is stopped and resumed ends with the same bits as one that was not, on the same machine with the same number of
    processes. SIGINT (Ctrl-C) and SIGTERM finish the step, save, and raise `TrainingStopped`.

    Args:
        model: the model.
        dataset: any dataset with a length, such as torch's, torchvision's or Hugging Face's, of images, pairs (image, label) or
            dictionaries (see `TrainingItems`). Pillow images are brought to the size and channels of the model. One with labels
            needs a model that takes them.
        validation_dataset: another of the same kind. With each checkpoint, the averaged weights' loss on it is logged, always with
            the same noise, and the checkpoint where it was lowest is kept.
        num_train_steps: optimiser steps in all, 70,000 unless `num_epochs` is given.
        num_epochs: instead, how often to see each image.
        max_minutes: end after this time even if steps are left, as after the last step.
        learning_rate: its highest value, reached after `warmup_steps`.
        lr_schedule: "constant" stays, so that a run can be ended at any time: the averaged weights are what a falling rate would
            give. "cosine" falls to zero at the last of `num_train_steps`.
        warmup_steps: steps of linear warm-up; at most a tenth of the training.
        batch_size: images that a process sends through the model at once. With accelerate's `gradient_accumulation_steps` a step
            takes several of them.
        max_grad_norm: the gradient is clipped to this norm.
        nonfinite: what to do about a loss or gradient that is not finite: "stop" with a FloatingPointError before it reaches the
            weights, or "skip" the step and go on, up to 25 times in a row. Either names the step. (In fp16 the gradient scaler
            skips steps where only the gradient is not finite: that is how it finds its scale.)
        gradient_checkpointing: keep less for the backward pass and compute it again, of a model that has
            `checkpoint_gradients()`: less memory, a quarter more time.
        checkpoints_folder: holds one folder for each checkpoint, `checkpoint.STEP`, which `from_pretrained` of the model's class
            can load: the averaged weights and the model's arguments, with the state of the training beside them. With several
            machines, all of them must see it.
        results_folder: holds the grids of samples, `results.STEP.png`.
        save_results_every, checkpoint_every: steps between them; both are also made after the last step.
        keep_last: newest checkpoints to keep, besides that with the lowest validation loss; None keeps all.
        num_samples: images in a grid. They are always drawn with the same seed, so that grids show progress and not luck. With
            labels a grid has one row for each class (at most `num_samples` of them), and as many columns as make up that number.
            With vectors it shows samples for the first items of the dataset.
        log_with: "tensorboard", another of accelerate's trackers, several of them, or None.
        logs_folder: holds TensorBoard's event files.
        log_every: steps between entries of the log: loss, gradient norm, learning rate, images a second, utilisation of the device.
        seed: of the order of the images, their augmentations, and the noise.
        adam_kwargs: further arguments of `torch.optim.AdamW`. Its weight decay, 0.02 as of Li et al. 2024, acts on matrices only.
        accelerate_kwargs: arguments of `accelerate.Accelerator`: devices, precision, gradient accumulation, compilation
            (`dynamo_backend="inductor"`), FSDP.
        ema_kwargs: arguments of `ema_pytorch.EMA`. By default the average reaches back over n^(3/4) of n steps so far, 10,000 at
            most: about 100 after 500 steps, 1,000 after 10,000. So it serves short runs as well as long ones.
        dataloader_kwargs: further arguments of `torch.utils.data.DataLoader`: workers, pinned memory. A `collate_fn` gets items as
            `TrainingItems` gives them, and makes a dictionary of them.
        sample_kwargs: further arguments of `model.sample` for the grids.
        resume: go on from the newest whole checkpoint. Without it, a folder that already holds checkpoints is refused.
    """

    def __init__(
        self,
        model: Module,
        *,
        dataset: Dataset,
        validation_dataset: Dataset | None = None,
        num_train_steps: int | None = None,
        num_epochs: float | None = None,
        max_minutes: float | None = None,
        learning_rate: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 20,
        batch_size: int = 16,
        max_grad_norm: float = 1.0,
        nonfinite: Literal["stop", "skip"] = "stop",
        gradient_checkpointing: bool = False,
        checkpoints_folder: str | Path = "./checkpoints",
        results_folder: str | Path = "./results",
        save_results_every: int = 500,
        checkpoint_every: int = 1000,
        keep_last: int | None = 3,
        num_samples: int = 16,
        log_with: str | list | None = "tensorboard",
        logs_folder: str | Path = "./logs",
        log_every: int = 10,
        seed: int = 0,
        adam_kwargs: dict | None = None,
        accelerate_kwargs: dict | None = None,
        ema_kwargs: dict | None = None,
        dataloader_kwargs: dict | None = None,
        sample_kwargs: dict | None = None,
        resume: bool = False,
    ):
        if num_train_steps is not None and num_epochs is not None:
            raise ValueError(f"num_train_steps and num_epochs exclude each other, got {num_train_steps} and {num_epochs}")
        check_positive_int(
            num_train_steps=70_000 if num_train_steps is None else num_train_steps,
            batch_size=batch_size,
            save_results_every=save_results_every,
            checkpoint_every=checkpoint_every,
            keep_last=1 if keep_last is None else keep_last,
            num_samples=num_samples,
            log_every=log_every,
        )
        check_above_zero(
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            max_minutes=1 if max_minutes is None else max_minutes,
            num_epochs=1 if num_epochs is None else num_epochs,
        )
        check_choice("lr_schedule", lr_schedule, ("constant", "cosine"))
        check_choice("nonfinite", nonfinite, ("stop", "skip"))
        for name, value, highest in (("warmup_steps", warmup_steps, math.inf), ("seed", seed, 2**31 - 1)):
            if type(value) is not int or not 0 <= value <= highest:
                raise ValueError(f"{name} must be a whole number from 0 to {highest}, got {value!r}")
        _check_dataset("dataset", dataset)
        if validation_dataset is not None:
            _check_dataset("validation_dataset", validation_dataset)
        if own := BATCH_ARGUMENTS & (dataloader_kwargs or {}).keys():
            raise ValueError(f"dataloader_kwargs must not hold {sorted(own)}: the trainer makes the batches, so that it can resume")
        # asked for now, so that a model that cannot be saved is known before it is trained
        self.config = model.config if isinstance(model, Pretrained) else None

        as_items = partial(TrainingItems, image_size=getattr(model, "image_size", None), channels=getattr(model, "channels", None))
        self.dataset = as_items(dataset)
        self.validation_dataset = None if validation_dataset is None else as_items(validation_dataset)
        self.max_minutes = max_minutes
        self.batch_size = batch_size
        self.max_grad_norm = max_grad_norm
        self.nonfinite = nonfinite
        self.save_results_every = save_results_every
        self.checkpoint_every = checkpoint_every
        self.keep_last = keep_last
        self.num_samples = num_samples
        self.log_every = log_every
        self.seed = seed
        self.dataloader_kwargs = dataloader_kwargs or {}
        self.sample_kwargs = sample_kwargs or {}
        self.checkpoints_folder = Path(checkpoints_folder)
        self.results_folder = Path(results_folder)

        if not resume and (there := list_checkpoints(self.checkpoints_folder)):
            raise FileExistsError(
                f"checkpoints_folder {self.checkpoints_folder} already holds {there[-1].name}: "
                "resume = True goes on from there, another folder starts anew"
            )
        accelerate_kwargs = dict(log_with=log_with, project_dir=str(logs_folder)) | (accelerate_kwargs or {})
        self.accelerator = Accelerator(**accelerate_kwargs)
        _check_trackers(accelerate_kwargs["log_with"], self.accelerator.log_with)
        newest = self._newest_checkpoint() if resume else None
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise ValueError("FSDP needs fsdp_version = 2 in accelerate's configuration")
        # a process that ends within its group may be aborted at the very end
        atexit.register(self.accelerator.state.destroy_process_group)
        self.images_a_step = batch_size * self.accelerator.num_processes * self.accelerator.gradient_accumulation_steps
        if num_epochs is not None:
            num_train_steps = math.ceil(num_epochs * len(dataset) / self.images_a_step)
        self.num_train_steps = 70_000 if num_train_steps is None else num_train_steps
        self.learning_rate_at = partial(
            learning_rate_at,
            highest=learning_rate,
            schedule=lr_schedule,
            warmup_steps=min(warmup_steps, self.num_train_steps // 10),
            num_steps=self.num_train_steps,
        )

        if not resume:
            self._measure(model)
        # each process has the average of what it has of the weights: all draw samples, and none waits for another that does
        average = copy.deepcopy(model).requires_grad_(False)
        if gradient_checkpointing:
            if not hasattr(model, "checkpoint_gradients"):
                raise ValueError(f"gradient_checkpointing needs a model with checkpoint_gradients(), got a {type(model).__name__}")
            model.checkpoint_gradients()
        adam_kwargs = dict(betas=(0.9, 0.99), weight_decay=0.02) | (adam_kwargs or {})
        optimizer = AdamW(parameter_groups(model, adam_kwargs.pop("weight_decay")), lr=learning_rate, **adam_kwargs)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.unwrapped_model = model
        if self.accelerator.is_fsdp2:
            average = fsdp2_prepare_model(self.accelerator, average)
            register_fsdp_forward_method(average, "sample")
        ema_defaults = dict(update_after_step=0, update_every=1, power=0.75, use_foreach=True)
        # its counters stay on the CPU, where reading them costs nothing
        average = average.to(self.accelerator.device)
        self.ema = EMA(model, ema_model=average, include_online_model=False, **(ema_defaults | (ema_kwargs or {})))

        self._training = TrainingState(self.accelerator, model, self.optimizer.optimizer, self.ema, self.config)
        self.step = 0
        self.images_seen = 0
        self.skipped_steps = 0
        self._random_state = None  # to go on with; none at the start
        self._skips_in_a_row = 0
        self.log = TrainingLog(
            self.accelerator,
            batch_size=batch_size,
            images_a_step=self.images_a_step,
            configuration=dict(self.config or {}, seed=seed, images_a_step=self.images_a_step),
        )
        self._validation_loss: float | None = None
        self._best_loss = math.inf
        self._deadline = math.inf
        self._signals = StopSignals()
        if resume:
            self.load(newest)

    def _measure(self, model: Module) -> None:
        """Lets a model that can measure the scale of its data do so, on the same images in all processes."""
        if not hasattr(model, "measure"):
            return
        items, collate = [], self.dataloader_kwargs.get("collate_fn") or default_collate
        with kept_random_state(torch.device("cpu")):
            seed_cpu(self.seed)  # items may be augmented at random
            for i in range(0, len(self.dataset), math.ceil(len(self.dataset) / MEASURED_IMAGES)):
                with suppress(DamagedImageError):  # the training has its own way with them
                    items.append(self.dataset[i])
        if items:
            model.measure(collate(items)["images"])

    def _newest_checkpoint(self) -> Path:
        newest = None
        if self.is_main:  # the others need not read all of it
            finish_interrupted(self.checkpoints_folder)
            newest = newest_checkpoint(self.checkpoints_folder)
        (newest,) = broadcast_object_list([newest])
        if newest is None:
            raise FileNotFoundError(f"nothing to resume: {self.checkpoints_folder} holds no whole checkpoint")
        return newest

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    # the loop

    def __call__(self) -> None:
        """Trains up to `num_train_steps`, or for `max_minutes`.

        Raises:
            TrainingStopped: after a signal, when all is saved.
            FloatingPointError: if a loss or gradient is not finite, and `nonfinite` says so.
        """
        if self.step >= self.num_train_steps:
            return
        self._start_random_numbers()
        started, first_step = time.monotonic(), self.step
        self._deadline = math.inf if self.max_minutes is None else started + 60 * self.max_minutes
        batches = endless_batches(
            self.dataset,
            self.batch_size,
            seed=self.seed,
            start=self.images_seen,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            **self.dataloader_kwargs,
        )
        with self._signals, dead_workers_explained(), closing(batches), self.log.open(self.step), self._bar() as bar:
            self._make_up()
            checkpoint, stopped = self._train(batches, bar)
        if stopped:
            self._say(f"stopped after step {self.step} and saved as {checkpoint}: resume = True goes on from there")
            raise TrainingStopped(self._signals.exit_code, self.step, checkpoint)
        self._say(self._summary(time.monotonic() - started, self.step - first_step, checkpoint))

    def _train(self, batches: Iterator[dict[str, Tensor]], bar: tqdm) -> tuple[Path, bool]:
        """The steps; gives the last checkpoint, and whether a signal ended them."""
        while True:
            started = time.monotonic()
            result = self._train_step(batches)
            self.step += 1
            is_spike = self.log.note(self.step, result.loss, result.gradient_norm, time.monotonic() - started)
            bar.update()
            finished = self.step == self.num_train_steps or result.out_of_time
            stopped = result.stop_wished and not finished
            last = finished or stopped
            if last or is_spike or self.step % self.log_every == 0:
                speed = self.log.write(
                    self.step,
                    self.unwrapped_model,
                    partial(_loss, batch=self._batch),
                    loss=result.loss,
                    gradient_norm=result.gradient_norm,
                    learning_rate=self.learning_rate_at(self.step - 1),
                    skipped_steps=self.skipped_steps,
                )
                bar.set_postfix_str(f"loss {self.log.losses.average:.4f}, {speed:.0f} images/s", refresh=False)
            # first what must not be lost
            if last or self.step % self.checkpoint_every == 0:
                checkpoint = self.save(validate=not stopped)
            if finished or (self.step % self.save_results_every == 0 and not stopped):
                self.save_results()
            if last:
                return checkpoint, stopped

    def _make_up(self) -> None:
        """Validates and draws where the run that went before had no time to: it was stopped at this step, or broke off after it."""
        wanted = [False, False]
        if self.is_main and self.step > 0:
            checkpoint = self.checkpoints_folder / f"checkpoint.{self.step}"
            is_validated = self.validation_dataset is None or validation_loss(checkpoint) is not None
            wanted = [
                self.step % self.checkpoint_every == 0 and not is_validated,
                self.step % self.save_results_every == 0 and not self._grid_path.exists(),
            ]
        validate, draw = broadcast_object_list(wanted)
        if validate:
            self.save()
        if draw:
            self.save_results()

    def _start_random_numbers(self) -> None:
        if self._random_state is not None:
            set_random_state(self._random_state, self.accelerator.device)
        elif self.step == 0:
            set_seed(self.seed, device_specific=True)  # other noise in each process
        self._random_state = None

    def _train_step(self, batches: Iterator[dict[str, Tensor]]) -> Step:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_at(self.step)
        losses = []
        passes = self.accelerator.gradient_accumulation_steps
        for i in range(passes):
            batch = self._batch = self._to_device(next(batches))
            self.images_seen += self.batch_size * self.accelerator.num_processes
            # gradients are exchanged between processes only once, with the last pass
            with nullcontext() if i == passes - 1 else self.accelerator.no_sync(self.model):
                loss = _loss(self.model, batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        result = self._agree(torch.stack(losses).mean(), norm)
        scaler = self.accelerator.scaler  # of fp16: it leaves out steps whose gradient is not finite, and learns of them
        if result.is_finite or (scaler is not None and math.isfinite(result.loss)):
            self.optimizer.step()
        elif scaler is not None:
            scaler.update()
        if result.is_finite and not self.accelerator.optimizer_step_was_skipped:
            self.ema.update()
        self.optimizer.zero_grad()
        self._heed_nonfinite(result)
        return result

    def _agree(self, loss: Tensor, norm: Tensor) -> Step:
        """The same values and decisions in all processes: those that go on would wait for ever for one that does not."""
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        out_of_time = time.monotonic() > self._deadline
        wishes = loss.new_tensor([out_of_time, self._signals.received is not None], dtype=torch.float32)
        values = torch.cat((torch.stack((loss.float(), norm.float())), wishes))
        loss, norm, out_of_time, stop_wished = self.accelerator.reduce(values, "mean").tolist()
        return Step(loss, norm, out_of_time > 0, stop_wished > 0)

    def _heed_nonfinite(self, result: Step) -> None:
        if result.is_finite:
            self._skips_in_a_row = 0
            return
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        # the gradient scaler of fp16 looks for its scale so
        is_search = math.isfinite(result.loss) and self.accelerator.scaler is not None
        what = f"the loss {result.loss:g} and the gradient norm {result.gradient_norm:g}"
        where = f"at step {self.step + 1}"
        if self._skips_in_a_row > SKIPS_IN_A_ROW:
            raise FloatingPointError(f"{what} are not finite {where}, as in {SKIPS_IN_A_ROW} steps before it")
        if self.nonfinite == "stop" and not is_search:
            raise FloatingPointError(
                f"{what} are not finite {where}; the weights are still those of the step before. "
                f"nonfinite = 'skip' leaves such steps out; a lower learning rate may avoid them"
            )
        if not is_search and self.is_main:
            logger.warning("step %d is skipped: %s are not finite", self.step + 1, what)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return send_to_device(batch, self.accelerator.device, non_blocking=True)

    # what is seen of it

    def _bar(self) -> tqdm:
        return tqdm(total=self.num_train_steps, initial=self.step, desc="training", disable=not self.is_main)

    def _say(self, sentence: str) -> None:
        if self.is_main:
            tqdm.write(sentence, file=sys.stderr)

    def _summary(self, seconds: float, steps: int, checkpoint: Path) -> str:
        speed = steps * self.images_a_step / seconds
        parts = [
            f"{steps:,} steps in {tqdm.format_interval(seconds)}",
            f"{speed:.0f} images/s with all that was saved and drawn",
            f"loss {self.log.losses.average:.4f}",
        ]
        if self._validation_loss is not None:
            parts.append(f"validation loss {self._validation_loss:.4f}, at best {self._best_loss:.4f}")
        if self.skipped_steps:
            parts.append(f"{self.skipped_steps} steps skipped")
        return f"{', '.join(parts)}; {checkpoint}"

    # grids of samples

    def save_results(self) -> None:
        """Draws a grid of samples with the averaged weights, into `results_folder`. All processes must call it: they share it."""
        conditions, columns, row_names = self._grid_layout
        count = len(next(iter(conditions.values()))) if conditions else self.num_samples
        device, process = self.accelerator.device, self.accelerator.process_index
        share = math.ceil(count / self.accelerator.num_processes)
        own = torch.arange(process * share, (process + 1) * share).clamp(max=count - 1)  # the same number in each, to be gathered
        kwargs = {name: given[own].to(device) for name, given in conditions.items()} | self.sample_kwargs
        if self.accelerator.num_processes > 1:
            kwargs |= {name: _part(kwargs[name], own, count) for name in ONE_AN_IMAGE & self.sample_kwargs.keys()}
        model = self.ema.ema_model
        if self.config is not None and self.accelerator.mixed_precision == "bf16" and not self.accelerator.is_fsdp2:
            kwargs = dict(precision="bf16") | kwargs
        # a training that missed a grid must not go on otherwise than one that did not
        with kept_random_state(device), evaluating(list(model.modules())), torch.no_grad():
            generator = torch.Generator(device).manual_seed(process)
            images = model.sample(batch_size=share, generator=generator, **kwargs)
        images = self.accelerator.gather(images.contiguous())[:count]
        self._write(lambda: save_image_grid(images, self._grid_path, columns, row_names))

    @property
    def _grid_path(self) -> Path:
        return self.results_folder / f"results.{self.step}.png"

    def _write(self, write: Callable[[], None]) -> None:
        """Lets the main process write; if it cannot, all raise the same error, and none waits for it."""
        fault = None
        if self.is_main:
            try:
                write()
            except OSError as error:
                if self.accelerator.num_processes == 1:
                    raise
                fault = str(error)
        (fault,) = broadcast_object_list([fault])
        if fault is not None:
            raise OSError(fault)

    @cached_property
    def _grid_layout(self) -> tuple[dict[str, Tensor], int | None, list[str] | None]:
        """What the grids show: labels and vectors, the number of columns, and the names of the rows."""
        conditions = self._conditions_of_first(1)
        if not conditions or {"labels", "cond"} & self.sample_kwargs.keys():
            return {}, None, None
        num_classes = getattr(self.unwrapped_model, "num_classes", None)
        if conditions.keys() != {"labels"} or num_classes is None:
            return self._conditions_of_first(self.num_samples), None, None
        labels, columns = labels_by_row(num_classes, self.num_samples)
        names = self.dataset.classes or []
        names = names if len(names) == num_classes else list(map(str, range(num_classes)))
        return dict(labels=labels), columns, [names[i] for i in labels[::columns]]

    def _conditions_of_first(self, count: int) -> dict[str, Tensor]:
        """Labels and vectors of the first items of the dataset, always the same."""
        count = min(count, len(self.dataset))
        collate = {name: given for name, given in self.dataloader_kwargs.items() if name == "collate_fn"}
        with closing(batches_of(self.dataset, range(count), count, **collate)) as batches:
            batch = next(batches)
        return {name: part for name, part in batch.items() if name != "images"}

    # validation

    @torch.no_grad()
    def validate(self) -> float:
        """The averaged weights' loss on the validation dataset. All processes must call it; they share the work.

        It is that on all images; but for FSDP, whose processes must have as many each.

        The noise, and what the dataset draws at random, are the same at each call: so the losses compare.
        """
        device, processes = self.accelerator.device, self.accelerator.num_processes
        length = len(self.validation_dataset)
        if self.accelerator.is_fsdp2:  # the parts of a sharded model work together: as many batches in each process
            length = max(length // processes * processes, processes)
        items = [i % len(self.validation_dataset) for i in range(self.accelerator.process_index, length, processes)]
        total, count = torch.zeros((), device=device), 0
        model = self.ema.ema_model
        batches = batches_of(self.validation_dataset, items, self.batch_size, **self.dataloader_kwargs)
        with kept_random_state(device), evaluating(list(model.modules())), closing(batches):
            set_seed(self.seed, device_specific=True)
            for batch in batches:
                with self.accelerator.autocast():
                    total += len(batch["images"]) * _loss(model, self._to_device(batch)).float()
                count += len(batch["images"])
        total, count = self.accelerator.reduce(torch.stack((total, torch.full_like(total, count))), "sum").tolist()
        return total / count

    # checkpoints

    def save(self, validate: bool = True) -> Path:
        """Writes `checkpoint.STEP` into `checkpoints_folder`, whole or not at all. All processes must call it; the main one writes.

        Args:
            validate: compute the validation loss first, if there is a validation dataset.

        Raises:
            OSError: if it cannot be written; what was saved before is untouched.
        """
        self._validation_loss = self.validate() if validate and self.validation_dataset is not None else None
        if self._validation_loss is not None:
            self._best_loss = min(self._best_loss, self._validation_loss)
            self.accelerator.log(dict(validation_loss=self._validation_loss), step=self.step)
        write = self._training.collect(
            step=self.step,
            num_images=len(self.dataset),
            images_seen=self.images_seen,
            skipped_steps=self.skipped_steps,
            best_loss=self._best_loss,
            losses=vars(self.log.losses),
            random_states=gather_object([random_state(self.accelerator.device)]),
        )

        def write_and_remove() -> None:
            write_checkpoint(self.checkpoints_folder, self.step, write, validation_loss=self._validation_loss)
            if self.keep_last is not None:
                remove_old_checkpoints(self.checkpoints_folder, self.keep_last, up_to=self.step)

        self._write(write_and_remove)
        return self.checkpoints_folder / f"checkpoint.{self.step}"

    def load(self, folder: str | Path) -> None:
        """Takes up the training where the checkpoint in `folder` left it.

        Raises:
            ValueError: if its state of the training holds anything but tensors and plain values.
        """
        progress = self._training.load(Path(folder))
        self.step = progress["step"]
        if progress["num_images"] != len(self.dataset):
            warnings.warn(
                f"the dataset holds {len(self.dataset)} images, {progress['num_images']} when the checkpoint was written: they "
                "come in another order than they would have",
                stacklevel=3,
            )
        self.images_seen = progress["images_seen"]
        self.skipped_steps = progress["skipped_steps"]
        self._best_loss = progress["best_loss"]
        self.log.losses = RunningAverage(**progress["losses"])
        states = progress["random_states"]
        if len(states) == self.accelerator.num_processes:
            self._random_state = states[self.accelerator.process_index]
        else:
            self._say(f"saved by {len(states)} processes, resumed by {self.accelerator.num_processes}: the noise will be another")
            with kept_random_state(self.accelerator.device):
                set_seed(self.seed + self.step, device_specific=True)
                self._random_state = random_state(self.accelerator.device)


def _check_trackers(wanted: str | list | None, found: list) -> None:
    """accelerate passes over trackers whose package is not there."""
    wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    missing = {name for name in wanted if isinstance(name, str) and name != "all"} - {str(tracker) for tracker in found}
    if missing:
        raise ValueError(f"log_with: the packages of {', '.join(sorted(missing))} are not installed")


def _loss(model: Module, batch: dict[str, Tensor]) -> Tensor:
    conditions = {name: part for name, part in batch.items() if name != "images"}
    return model(batch["images"], **conditions)


def _part(given, own: Tensor, count: int):
    """What belongs to some of `count` images; what is one for all stays."""
    tensor = as_tensor("sample_kwargs", given)
    if tensor.ndim == 0 or len(tensor) == 1:
        return given
    return tensor.repeat_interleave(count // len(tensor), dim=0)[own.to(tensor.device)]


def _check_dataset(name: str, dataset: Dataset) -> None:
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"{name} must have a length and give items by their index, got a {type(dataset).__name__}")
    if len(dataset) < 1:
        raise ValueError(f"{name} holds no image")
