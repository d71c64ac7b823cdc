"""The general trainer: how a training is set up, saved and resumed."""

from __future__ import annotations

import atexit
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import DistributedType, fsdp2_prepare_model
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn import Module
from torch.utils.data import Dataset, default_collate

from ..data.image_files import DamagedImageError
from ..data.order import BATCH_ARGUMENTS
from ..models.hub import Pretrained
from ..utils.files import utf8_path
from ..utils.rng import preserved_rng, seed_cpu
from ..utils.validation import check_above_zero, check_choice, check_int, check_positive_int
from .environment import copy_of, make_accelerator
from .logging import TrainingLog
from .loop import Part, TrainingLoop
from .optim import learning_rate_at, make_average, make_optimizer
from .parts import Checkpoints, Validation
from .state import TrainingState
from .together import one_line
from .trial import check_dataset, try_folders, try_item

DEFAULT_STEPS = 70_000
MEASURED_ITEMS = 256  # for the scale of the data


class Trainer(TrainingLoop):
    """Trains any model with `model(**batch) -> loss`; `trainer()` runs it.

    A run that is stopped and resumed ends with the same bits as one that was not, on the same
    machine with the same number of processes. SIGINT (Ctrl-C) and SIGTERM finish the step, save,
    and raise `TrainingStopped`.

    Args:
        model: the model. Where it has `measure(**batch)`, that is called before the first step;
            and `set_progress(share)`, with the share of the steps that are done, before each.
        dataset: gives dictionaries of tensors by their index, and has a length.
        validation_dataset: another of the same kind. With each checkpoint, the averaged weights'
            loss on it is logged, always with the same noise, and the checkpoint where it was lowest
            is kept.
        num_train_steps: optimizer steps in all, 70,000 unless `num_epochs` is given.
        num_epochs: instead, how often to see each item.
        max_minutes: end after this time even if steps are left, as after the last step.
        learning_rate: its highest value, reached after `warmup_steps`.
        lr_schedule: "constant", so that a run can be ended at any time (the averaged weights make
            up for a falling rate), or "cosine", falling to zero after `num_train_steps`.
        warmup_steps: steps of linear warm-up; at most a tenth of the training.
        batch_size: items per process and forward pass. With accelerate's
            `gradient_accumulation_steps` a step takes several passes.
        max_grad_norm: the gradient is clipped to this norm.
        nonfinite: at a loss or gradient that is not finite, "stop" with a FloatingPointError before
            it reaches the weights, or "skip" the step, up to 25 times in a row. Either names the
            step. (In fp16 the gradient scaler skips steps where only the gradient is not finite:
            that is how it finds its scale.)
        gradient_checkpointing: keep less for the backward pass and compute it again, of a model
            that has `checkpoint_gradients()`: less memory, a quarter more time.
        checkpoints_folder: holds one folder per checkpoint, `checkpoint.STEP`, which
            `from_pretrained` of the model's class can load: the averaged weights and the model's
            arguments, with the state of the training beside them. With several machines, all of
            them must see it.
        checkpoint_every: steps between checkpoints; there is one after the last step, too.
        keep_last: newest checkpoints to keep, besides that with the lowest validation loss; None
            keeps all.
        log_with: "tensorboard", another of accelerate's trackers, several of them, or None.
        logs_folder: holds TensorBoard's event files.
        log_every: steps between entries of the log: loss, gradient norm, learning rate, items per
            second, utilization of the device.
        seed: of the order of the items, their augmentations, and the noise.
        adam_kwargs: further arguments of `torch.optim.AdamW`. Its weight decay, 0.02 as of Li et
            al. 2024, acts on matrices only.
        accelerate_kwargs: arguments of `accelerate.Accelerator`: devices, precision, gradient
            accumulation, compilation (`dynamo_backend="inductor"`), FSDP.
        ema_kwargs: arguments of `ema_pytorch.EMA`. By default the average reaches back over
            n^(3/4) of n steps so far, 10,000 at most: about 100 after 500 steps, 1,000 after
            10,000. So it serves short runs as well as long ones.
        dataloader_kwargs: further arguments of `torch.utils.data.DataLoader`: workers, pinned
            memory, a `collate_fn` that makes a dictionary of items.
        parts: further parts of the training, such as pictures of its samples, in the order in which
            they are called after each step; log, validation and checkpoints come first.
        resume: go on from the newest whole checkpoint; "auto" starts where there is none. Without
            it, a folder that already holds one is refused.

    Raises:
        ValueError, TypeError: of an argument, an item of the dataset or of the validation dataset
            that does not fit the model: one of each is tried.
        OSError: if a folder cannot be written.
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
        checkpoint_every: int = 1000,
        keep_last: int | None = 3,
        log_with: str | list | None = "tensorboard",
        logs_folder: str | Path = "./logs",
        log_every: int = 10,
        seed: int = 0,
        adam_kwargs: dict | None = None,
        accelerate_kwargs: dict | None = None,
        ema_kwargs: dict | None = None,
        dataloader_kwargs: dict | None = None,
        parts: Sequence[Part] = (),
        resume: bool | Literal["auto"] = False,
    ):
        super().__init__()
        if num_train_steps is not None and num_epochs is not None:
            raise ValueError(
                "num_train_steps and num_epochs exclude each other, "
                f"got {num_train_steps} and {num_epochs}"
            )
        check_positive_int(
            num_train_steps=1 if num_train_steps is None else num_train_steps,
            batch_size=batch_size,
            checkpoint_every=checkpoint_every,
            keep_last=1 if keep_last is None else keep_last,
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
        check_choice("resume", resume, (True, False, "auto"))
        check_int("warmup_steps", warmup_steps, 0, math.inf)
        check_int("seed", seed, 0, 2**31 - 1)
        check_dataset("dataset", dataset, self.item)
        if validation_dataset is not None:
            check_dataset("validation_dataset", validation_dataset, self.item)
        if own := BATCH_ARGUMENTS & (dataloader_kwargs or {}).keys():
            raise ValueError(
                f"dataloader_kwargs must not hold {sorted(own)}: the trainer makes the batches, "
                "so that it can resume"
            )
        # asked for now, so that a model that cannot be saved is known before it is trained
        inner = getattr(model, "_orig_mod", model)  # of what torch.compile gives
        self.config = inner.config if isinstance(inner, Pretrained) else None
        self.dataset = dataset
        self.max_minutes = max_minutes
        self.batch_size = batch_size
        self.max_grad_norm = max_grad_norm
        self.nonfinite = nonfinite
        self.seed = seed
        self.dataloader_kwargs = dataloader_kwargs or {}

        self.log = TrainingLog(log_every)
        self.validation = Validation(validation_dataset)
        folder = Path(checkpoints_folder)
        self.checkpoints = Checkpoints(folder, checkpoint_every, keep_last, self.validation)
        self.parts = [self.validation, self.log, self.checkpoints, *parts]

        defaults = dict(log_with=log_with, project_dir=str(utf8_path(logs_folder)))
        accelerate_kwargs = defaults | (accelerate_kwargs or {})
        self.accelerator = accelerator = make_accelerator(accelerate_kwargs)
        newest = self._newest(resume)
        if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
            raise ValueError("FSDP needs fsdp_version = 2 in accelerate's configuration")
        # a process that ends within its group may be aborted at the very end
        atexit.register(accelerator.state.destroy_process_group)
        self.passes = accelerator.gradient_accumulation_steps
        self.effective_batch_size = batch_size * accelerator.num_processes * self.passes
        if num_epochs is not None:
            num_train_steps = math.ceil(num_epochs * len(dataset) / self.effective_batch_size)
        self.num_train_steps = DEFAULT_STEPS if num_train_steps is None else num_train_steps
        self.learning_rate_at = partial(
            learning_rate_at,
            highest=learning_rate,
            schedule=lr_schedule,
            warmup_steps=min(warmup_steps, self.num_train_steps // 10),
            num_steps=self.num_train_steps,
        )
        if newest is None:
            self._measure(model)
        self._prepare(model, learning_rate, gradient_checkpointing, adam_kwargs, ema_kwargs)
        if newest is not None:
            self.load(newest)
        # what fails only later costs the work until then
        try_item(self, "dataset", dataset)
        if validation_dataset is not None:
            try_item(self, "validation_dataset", validation_dataset)
        folders = dict(checkpoints_folder=folder)
        if "tensorboard" in map(str, accelerator.log_with):
            folders["logs_folder"] = Path(accelerator.project_dir)
        try_folders(self, folders)

    def _newest(self, resume: bool | Literal["auto"]) -> Path | None:
        """The checkpoint to go on from, None to start."""
        folder, newest = self.checkpoints.folder, self.checkpoints.newest(self.accelerator)
        if newest is None and resume is True:
            raise FileNotFoundError(f"nothing to resume: {folder} holds no whole checkpoint")
        if newest is not None and not resume:
            raise FileExistsError(
                f"checkpoints_folder {folder} already holds {newest.name}: "
                f"{self.how_to_resume}, another folder starts anew"
            )
        return newest

    def _measure(self, model: Module) -> None:
        """Lets a model measure the scale of its data, on the same items in all processes."""
        if not hasattr(model, "measure"):
            return
        items, collate = [], self.dataloader_kwargs.get("collate_fn") or default_collate
        with preserved_rng(torch.device("cpu")):
            seed_cpu(self.seed)  # items may be augmented at random
            stride = math.ceil(len(self.dataset) / MEASURED_ITEMS)
            for i in range(0, len(self.dataset), stride):
                with suppress(DamagedImageError):  # the training handles them
                    items.append(self.dataset[i])
        if not items:
            return
        try:
            batch = collate(items)
        except (RuntimeError, TypeError, KeyError) as error:
            what = f"dataset gives {self.item}s that make no batch"
            raise ValueError(f"{what}: {one_line(error)}") from error
        self.call(model.measure, batch)

    def _prepare(
        self,
        model: Module,
        learning_rate: float,
        gradient_checkpointing: bool,
        adam_kwargs: dict | None,
        ema_kwargs: dict | None,
    ) -> None:
        # each process averages what it has of the weights: all draw samples, none waits for another
        # what torch.compile gives would rename the parameters: only the training steps run it
        inner = getattr(model, "_orig_mod", model)
        average = copy_of(inner).requires_grad_(False)
        if gradient_checkpointing:
            if not hasattr(model, "checkpoint_gradients"):
                raise ValueError(
                    "gradient_checkpointing needs a model with checkpoint_gradients(), "
                    f"got a {type(model).__name__}"
                )
            model.checkpoint_gradients()
        optimizer = make_optimizer(model, learning_rate, adam_kwargs)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.unwrapped_model = inner
        if self.accelerator.is_fsdp2:
            average = fsdp2_prepare_model(self.accelerator, average)
            for name in ("sample", "log_prob"):
                if hasattr(average, name):
                    register_fsdp_forward_method(average, name)
        # the counters of the average stay on the CPU, where reading them costs nothing
        average = average.to(self.accelerator.device)
        self.ema = make_average(inner, average, ema_kwargs)
        self.checkpoints.training_state = TrainingState(
            self.accelerator, inner, self.optimizer.optimizer, self.ema, self.config
        )

    def save(self, validate: bool = True) -> Path:
        """Writes `checkpoint.STEP`, whole or not at all. All processes must call it.

        Args:
            validate: compute the validation loss then, if there is a validation dataset.

        Raises:
            OSError: if it cannot be written; what was saved before is untouched.
        """
        return self.checkpoints.save(self, validate)

    def validate(self) -> float:
        """The averaged weights' loss on the validation dataset. All processes must call it.

        The noise, and what the dataset draws at random, are the same at each call: losses compare.
        """
        return self.validation.compute(self)

    def load(self, folder: str | Path) -> None:
        """Takes up the training where the checkpoint in `folder` left it.

        Raises:
            ValueError: if its state of the training holds anything but tensors and plain values.
        """
        self.checkpoints.load(self, Path(folder))
