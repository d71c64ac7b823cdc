"""Training a model of images: the loop, the moving average of the weights, checkpoints, grids of samples."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from ema_pytorch import EMA
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn import Module
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from autoregressive_diffusion_pytorch.checks import check_above_zero, check_choice, check_positive_int
from autoregressive_diffusion_pytorch.image_dataset import TrainingItems
from autoregressive_diffusion_pytorch.pretrained import Pretrained

CHECKPOINT = re.compile(r"checkpoint\.(\d+)")

# of the grids of samples, in pixels
GRID_PADDING = 2
ROW_NAME_MARGIN = 6


class ImageTrainer:
    """Trains a model of images; `trainer()` runs it.

    The model needs only `model(images) -> loss` and `model.sample(batch_size=…, generator=…) -> images` with values in [0, 1].
    Labels and vectors that the dataset gives come to both as `labels`, `cond` and `cond_mask`.

    Args:
        model: the model.
        dataset: any dataset with a length, such as torch's, torchvision's or Hugging Face's, of images, pairs (image, label) or
            dictionaries (see `TrainingItems`). Pillow images are brought to the size and channels of the model. One with labels
            needs a model that takes them.
        num_train_steps: optimiser steps in all.
        max_minutes: end after this time even if steps are left, as after the last step.
        learning_rate: its highest value, reached after `warmup_steps`.
        lr_schedule: "constant" stays, so that a run can be ended at any time: the averaged weights are what a falling rate would
            give. "cosine" falls to zero at the last of `num_train_steps`.
        warmup_steps: steps of linear warm-up; at most a tenth of the training.
        batch_size: images a step, for each process.
        max_grad_norm: the gradient is clipped to this norm.
        checkpoints_folder: holds one folder for each checkpoint, `checkpoint.STEP`, which `from_pretrained` of the model's class
            can load: the averaged weights and the model's arguments, with the state of the training beside them.
        results_folder: holds the grids of samples, `results.STEP.png`.
        save_results_every, checkpoint_every: steps between them; both are also made after the last step.
        num_samples: images in a grid. They are always drawn with the same seed, so that grids show progress and not luck. With
            labels a grid has one row for each class (at most `num_samples` of them), and as many columns as make up that number.
            With vectors it shows samples for the first items of the dataset.
        adam_kwargs: further arguments of `torch.optim.AdamW`.
        accelerate_kwargs: arguments of `accelerate.Accelerator`: devices, precision, gradient accumulation.
        ema_kwargs: arguments of `ema_pytorch.EMA`. By default the average reaches back over n^(3/4) of n steps so far, 10,000 at
            most: about 100 after 500 steps, 1,000 after 10,000. So it serves short runs as well as long ones.
        dataloader_kwargs: further arguments of `torch.utils.data.DataLoader`: workers, pinned memory. A `collate_fn` gets items as
            `TrainingItems` gives them, and makes a dictionary of them.
        sample_kwargs: further arguments of `model.sample` for the grids.
        resume: go on from the newest checkpoint. Without it, a folder that already holds checkpoints is refused.
    """

    def __init__(
        self,
        model: Module,
        *,
        dataset: Dataset,
        num_train_steps: int = 70_000,
        max_minutes: float | None = None,
        learning_rate: float = 3e-4,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 100,
        batch_size: int = 16,
        max_grad_norm: float = 1.0,
        checkpoints_folder: str | Path = "./checkpoints",
        results_folder: str | Path = "./results",
        save_results_every: int = 500,
        checkpoint_every: int = 1000,
        num_samples: int = 16,
        adam_kwargs: dict | None = None,
        accelerate_kwargs: dict | None = None,
        ema_kwargs: dict | None = None,
        dataloader_kwargs: dict | None = None,
        sample_kwargs: dict | None = None,
        resume: bool = False,
    ):
        check_positive_int(
            num_train_steps=num_train_steps,
            batch_size=batch_size,
            save_results_every=save_results_every,
            checkpoint_every=checkpoint_every,
            num_samples=num_samples,
        )
        check_above_zero(learning_rate=learning_rate, max_grad_norm=max_grad_norm)
        if max_minutes is not None:
            check_above_zero(max_minutes=max_minutes)
        check_choice("lr_schedule", lr_schedule, ("constant", "cosine"))
        if not hasattr(dataset, "__len__"):
            raise TypeError(f"dataset must have a length and give items by their index, got a {type(dataset).__name__}")
        if len(dataset) < 1:
            raise ValueError("dataset holds no image")
        # asked for now, so that a model that cannot be saved is known before it is trained
        self.config = model.config if isinstance(model, Pretrained) else None

        self.dataset = TrainingItems(dataset, getattr(model, "image_size", None), getattr(model, "channels", None))
        self.num_train_steps = num_train_steps
        self.max_minutes = max_minutes
        self.learning_rate = learning_rate
        self.lr_schedule = lr_schedule
        self.warmup_steps = min(warmup_steps, num_train_steps // 10)
        self.batch_size = batch_size
        self.max_grad_norm = max_grad_norm
        self.save_results_every = save_results_every
        self.checkpoint_every = checkpoint_every
        self.num_samples = num_samples
        self.sample_kwargs = sample_kwargs or {}
        self.checkpoints_folder = Path(checkpoints_folder)
        self.results_folder = Path(results_folder)

        newest = newest_checkpoint(self.checkpoints_folder)
        if resume and newest is None:
            raise FileNotFoundError(f"nothing to resume: {self.checkpoints_folder} holds no checkpoint")
        if newest is not None and not resume:
            raise FileExistsError(
                f"checkpoints_folder {self.checkpoints_folder} already holds {newest.name}: "
                "resume = True goes on from there, another folder starts anew"
            )

        self.accelerator = Accelerator(**(accelerate_kwargs or {}))
        optimizer = AdamW(model.parameters(), lr=learning_rate, **(dict(betas=(0.9, 0.99), weight_decay=0.0) | (adam_kwargs or {})))
        # last images that do not make a full batch in each process are dropped, unless there are no others
        enough = len(dataset) >= batch_size * self.accelerator.num_processes
        loader = DataLoader(self.dataset, batch_size=batch_size, shuffle=True, drop_last=enough, **(dataloader_kwargs or {}))
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.ema = None
        if self.is_main:
            ema_defaults = dict(update_after_step=0, update_every=1, power=0.75, use_foreach=True)
            # a copy of a model that is on its device already; the counters stay on the CPU, where reading them costs nothing
            self.ema = EMA(self.unwrapped_model, include_online_model=False, **(ema_defaults | (ema_kwargs or {})))
        self.step = 0
        if resume:
            self.load(newest)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def unwrapped_model(self) -> Module:
        return self.accelerator.unwrap_model(self.model)

    def __call__(self) -> None:
        """Trains up to `num_train_steps`, or for `max_minutes`."""
        deadline = math.inf if self.max_minutes is None else time.monotonic() + 60 * self.max_minutes
        batches = self._batches()
        images_a_step = self.batch_size * self.accelerator.num_processes * self.accelerator.gradient_accumulation_steps
        average = RunningAverage()
        with tqdm(total=self.num_train_steps, initial=self.step, desc="training", disable=not self.is_main) as bar:
            last = self.step >= self.num_train_steps
            while not last:
                average.add(self._train_step(batches))
                self.step += 1
                bar.update()
                last = self.step == self.num_train_steps or self._agree(time.monotonic() > deadline)
                # reading the loss waits for the device: only as often as a person reads the bar
                if last or self.step % 10 == 0:
                    rate = bar.format_dict["rate"]
                    speed = f"{rate * images_a_step:.0f}" if rate else "?"
                    bar.set_postfix_str(f"loss {average.value():.4f}, {speed} images/s", refresh=False)
                # first what must not be lost
                if last or self.step % self.checkpoint_every == 0:
                    self.save()
                if last or self.step % self.save_results_every == 0:
                    self.save_results()

    def _agree(self, decision: bool) -> bool:
        """The main process's decision, in all processes: those that go on would wait for ever for one that stopped."""
        if self.max_minutes is None or self.accelerator.num_processes == 1:
            return decision
        return bool(broadcast(torch.tensor(int(decision), device=self.accelerator.device)))

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(self.num_train_steps - self.warmup_steps, 1)
        return self.learning_rate * (0.5 + 0.5 * math.cos(math.pi * done))

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.loader

    def _train_step(self, batches: Iterator[dict[str, Tensor]]) -> Tensor:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_at(self.step)
        losses = []
        passes = self.accelerator.gradient_accumulation_steps
        for i in range(passes):
            # gradients are exchanged between processes only once, with the last pass
            with nullcontext() if i == passes - 1 else self.accelerator.no_sync(self.model):
                batch = next(batches)
                loss = self.model(batch.pop("images"), **batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return torch.stack(losses).mean()

    # grids of samples

    def save_results(self) -> None:
        """Draws a grid of samples with the averaged weights, into `results_folder`."""
        if self.is_main:
            generator = torch.Generator(self.accelerator.device).manual_seed(0)
            conditions, columns, row_names = self._grid_layout
            count = len(next(iter(conditions.values()))) if conditions else self.num_samples
            kwargs = {name: given.to(self.accelerator.device) for name, given in conditions.items()} | self.sample_kwargs
            with torch.no_grad():
                images = self.ema.ema_model.sample(batch_size=count, generator=generator, **kwargs)
            save_image_grid(images, self.results_folder / f"results.{self.step}.png", columns, row_names)
        self.accelerator.wait_for_everyone()

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
        """Labels and vectors of the first items of the dataset."""
        with torch.random.fork_rng(devices=[]):  # augmentations draw random numbers: the training's are not to change
            items = [self.dataset[i] for i in range(min(count, len(self.dataset)))]
        return default_collate([{name: part for name, part in item.items() if name != "images"} for item in items])

    # checkpoints

    def save(self) -> Path:
        """Writes `checkpoint.STEP` into `checkpoints_folder`, whole or not at all."""
        folder = self.checkpoints_folder / f"checkpoint.{self.step}"
        if self.is_main:
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_model(self.ema.ema_model, str(partial / "model.safetensors"))
            if self.config is not None:
                (partial / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True))
            torch.save(
                dict(
                    step=self.step,
                    model=self.unwrapped_model.state_dict(),
                    ema_step=self.ema.step,
                    optimizer=self.optimizer.state_dict()["state"],
                ),
                partial / "training.pt",
            )
            replaced = folder.with_name(f"{folder.name}.replaced")
            if folder.exists():  # written before by a run that went on from an older checkpoint: kept until the new one is in place
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(folder, replaced)
            os.replace(partial, folder)
            shutil.rmtree(replaced, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return folder

    def load(self, folder: str | Path) -> None:
        """Takes up the training where the checkpoint in `folder` left it."""
        folder = Path(folder)
        state = torch.load(folder / "training.pt", map_location=self.accelerator.device, weights_only=True)
        self.unwrapped_model.load_state_dict(state["model"])
        # the moments of the gradients; rates and the like are this trainer's own, which may be others than when it was saved
        self.optimizer.load_state_dict(self.optimizer.state_dict() | dict(state=state["optimizer"]))
        if self.ema is not None:
            load_model(self.ema.ema_model, str(folder / "model.safetensors"))
            self.ema.step.copy_(state["ema_step"])
            self.ema.initted.fill_(True)
        self.step = state["step"]


def best_precision() -> str:
    """accelerate's name of the mixed precision that trains fastest here: "bf16" where there are instructions for it, else "no"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # without them a processor emulates bfloat16, slower than single precision
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if has_instructions() else "no"


class RunningAverage:
    """An average of the last hundred or so numbers, held on their device."""

    def __init__(self):
        self.count = 0
        self.average = 0.0

    def add(self, number: Tensor) -> None:
        self.count += 1
        self.average = self.average + (number - self.average) / min(self.count, 100)

    def value(self) -> float:
        return float(self.average)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint with the most steps in a folder of checkpoints, None where there is none."""
    folder = Path(folder)
    matches = [CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    steps = [int(match[1]) for match in matches if match]
    return folder / f"checkpoint.{max(steps)}" if steps else None


def labels_by_row(num_classes: int, count: int) -> tuple[Tensor, int]:
    """Labels of at least `count` images, a class a row, and the number of columns; of more classes than `count` some, evenly."""
    rows = min(num_classes, count)
    columns = math.ceil(count / rows)
    labels = torch.arange(rows) * num_classes // rows
    return labels.repeat_interleave(columns), columns


def save_image_grid(images: Tensor, path: str | Path, columns: int | None = None, row_names: Sequence[str] | None = None) -> None:
    """Writes images (b c h w) in [0, 1] as one PNG picture, small ones enlarged so that they can be seen.

    Args:
        images: of more than 4 channels the first three are shown.
        columns: images in a row; by default as many as make the grid about square.
        row_names: written beside the rows.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    enlarge = max(1, round(48 / max(images.shape[-2:])))
    images = images[:, :3] if images.shape[1] > 4 else images
    images = images.float().repeat_interleave(enlarge, dim=-2).repeat_interleave(enlarge, dim=-1)
    grid = make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))), padding=GRID_PADDING)
    picture = to_pil_image(grid.mul(255).add(0.5).clamp(0, 255).byte().cpu())
    if row_names is not None:
        picture = _with_row_names(picture, row_names, images.shape[-2] + GRID_PADDING)
    partial = path.with_name(f"{path.name}.partial")
    picture.save(partial, format="png")
    os.replace(partial, path)


def _with_row_names(picture: Image.Image, names: Sequence[str], row_height: int) -> Image.Image:
    font = ImageFont.load_default(size=max(10, min(16, row_height // 2)))
    margin = round(max(font.getlength(name) for name in names)) + 2 * ROW_NAME_MARGIN
    wide = Image.new(picture.mode, (margin + picture.width, picture.height), "black")
    wide.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(wide)
    for i, name in enumerate(names):
        draw.text((ROW_NAME_MARGIN, GRID_PADDING + (i + 0.5) * row_height), name, fill="white", font=font, anchor="lm")
    return wide


def save_image_files(images: Tensor, folder: str | Path) -> None:
    """Writes images (b c h w) in [0, 1] into `folder`, each as a PNG file named after its number."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images.float()):
        to_pil_image(image.mul(255).round().byte()).save(folder / f"{i:05}.png")
