"""The processes of `quality.py`: each trains one configuration with its own library, and draws from
it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker import CLASSES, serve

SIZES = dict(dim=256, depth=6)  # of the transformer, on both sides
BATCH_SIZE = 250  # of sampling


@dataclass(frozen=True)
class Configuration:
    """What to train, and how to draw from it. All that is not given is the library's default, but
    for the precision.

    Args:
        name: of the row.
        is_peer: version 0.4.0, of which only `head`, `patch_size`, `image_size`, `model`, `trainer`
            and `seed` can be chosen.
        head: a name in `HEADS`.
        order: "raster", "random" or "masked".
        model, head_kwargs, image, dataset, trainer: arguments of the sequence model, its head, the
            image model, `ImageDataset` and `ImageTrainer`.
        precision: accelerate's name of the mixed precision; by default, as "ardiff train" does, the
            one that trains fastest here.
        variant, trainer_variant: functions of `variants.py` that change the model and the trainer.
        average: the weights to draw from: "" for the trainer's average, "raw", or one of
            `average_widths`.
        average_widths: further averages to keep, by their width relative to the training.
        samplings: arguments of `sample`, and `average`, by the name of the row.
    """

    name: str
    is_peer: bool = False
    head: str = "flow"
    order: str = "raster"
    patch_size: int = 4
    image_size: int = 32
    labels: bool = False
    seed: int = 0
    model: dict = field(default_factory=dict)
    head_kwargs: dict = field(default_factory=dict)
    image: dict = field(default_factory=dict)
    dataset: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    precision: str | None = None
    variant: str | None = None
    trainer_variant: str | None = None
    average: str = ""
    average_widths: tuple[float, ...] = ()
    samplings: dict[str, dict] = field(default_factory=lambda: {"": {}})


class TimeIsUp(Exception):
    pass


class UntilDeadline:
    """A dataset that ends the training which reads it, after minutes of its processor time: other
    work changes nothing."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.deadline = 0.0
        self.cores = int(os.environ["OMP_NUM_THREADS"])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        if time.process_time() > self.deadline:
            raise TimeIsUp
        return self.dataset[index]

    def __getattr__(self, name: str):
        return getattr(self.dataset, name)

    def allow(self, minutes: float) -> None:
        self.deadline = time.process_time() + 60 * minutes * self.cores


def work_as_peer(configuration: Configuration, folder: Path, images: str) -> None:
    """A worker with version 0.4.0 and its trainer's defaults."""
    import torch

    import autoregressive_diffusion_pytorch as package

    torch.manual_seed(configuration.seed)
    model = getattr(package, CLASSES[configuration.head])(
        model=SIZES | configuration.model,
        image_size=configuration.image_size,
        patch_size=configuration.patch_size,
    )
    dataset = UntilDeadline(package.ImageDataset(images, configuration.image_size))
    never = dict(num_train_steps=10**9, save_results_every=10**9, checkpoint_every=10**9)
    trainer = package.ImageTrainer(
        model,
        dataset=dataset,
        checkpoints_folder=folder,
        results_folder=folder,
        **never,
        **configuration.trainer,
    )
    averages = dict(raw=model, averaged=trainer.ema_model.ema_model)

    def load(minutes: float) -> None:  # its own checkpoints leave out the optimiser
        saved = torch.load(folder / f"{minutes:g}.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        trainer.ema_model.load_state_dict(saved["average"])
        trainer.optimizer.load_state_dict(saved["optimizer"])

    if newest_mark(folder):
        load(newest_mark(folder))

    def train(minutes: float) -> dict:
        dataset.allow(minutes - newest_mark(folder))
        with suppress(TimeIsUp):
            trainer()
        state = dict(model=model, average=trainer.ema_model, optimizer=trainer.optimizer)
        torch.save(
            {name: part.state_dict() for name, part in state.items()}, folder / f"{minutes:g}.pt"
        )
        add_mark(folder, minutes, steps=int(trainer.ema_model.step))
        return {}

    def draw(minutes: float, average: str, count: int, file: str) -> dict:
        load(minutes)
        row = _draw(averages[average], count, file)
        load(newest_mark(folder))
        return row

    serve(train=train, draw=draw)


def work_as_ours(configuration: Configuration, folder: Path, images: str) -> None:
    """A worker with this library."""
    import torch
    import variants
    from ema_pytorch.post_hoc_ema import KarrasEMA
    from safetensors.torch import load_model

    import autoregressive_diffusion_pytorch as package
    from autoregressive_diffusion_pytorch.models.presets import image_model_class
    from autoregressive_diffusion_pytorch.utils.manifests import list_checkpoints, step_of
    from autoregressive_diffusion_pytorch.utils.modes import best_precision

    torch.manual_seed(configuration.seed)
    options = dict(labels_from_folders=configuration.labels) | configuration.dataset
    dataset = UntilDeadline(package.ImageDataset(images, configuration.image_size, **options))
    dataset.allow(60.0)  # to be measured
    model_class = image_model_class(configuration.head, configuration.order)
    sequences = model_class.model_class
    own = {} if sequences.preset else dict(head=configuration.head)
    own |= {sequences.head_argument(): configuration.head_kwargs}
    own |= dict(order="random") if configuration.order == "random" else {}
    model = model_class(
        model=SIZES | configuration.model | own,
        image_size=configuration.image_size,
        patch_size=configuration.patch_size,
        num_classes=len(dataset.classes) if configuration.labels else None,
        **configuration.image,
    )
    if configuration.variant:
        model = getattr(variants, configuration.variant)(model, dataset)
    precision = configuration.precision or best_precision()
    newest = newest_mark(folder)
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        if step_of(checkpoint) > marks_of(folder).get(newest, 0):
            # of a training that was ended between marks: its time is not known
            shutil.rmtree(checkpoint)
    trainer = package.ImageTrainer(
        model,
        dataset=dataset,
        seed=configuration.seed,
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "progress",
        num_samples=1,  # its grids are not needed
        log_with=None,
        resume=newest > 0,
        accelerate_kwargs=dict(mixed_precision=precision),
        **dict(save_results_every=10**9, checkpoint_every=10**9, keep_last=None)
        | configuration.trainer,
    )
    if configuration.trainer_variant:
        getattr(variants, configuration.trainer_variant)(trainer)
    averages = {"": trainer.ema.ema_model, "raw": model}
    # other lengths of the average, of Karras et al. 2024 (https://arxiv.org/abs/2312.02696), beside
    # the trainer's own
    others = {
        str(width): KarrasEMA(model, sigma_rel=width, update_every=1)
        for width in configuration.average_widths
    }
    averages |= {name: other.ema_model for name, other in others.items()}
    others_file = folder / "averages.pt"
    if newest and others:
        for name, state in torch.load(others_file, weights_only=True).items():
            others[name].load_state_dict(state)
    update = trainer.ema.update

    def update_all() -> None:
        update()
        for other in others.values():
            other.update()

    trainer.ema.update = update_all

    def train(minutes: float) -> dict:
        dataset.allow(minutes - newest_mark(folder))
        with suppress(TimeIsUp):
            trainer()
        trainer.save()
        torch.save({name: other.state_dict() for name, other in others.items()}, others_file)
        add_mark(folder, minutes, steps=trainer.step)
        return {}

    def load(minutes: float) -> None:
        checkpoint = folder / "checkpoints" / f"checkpoint.{marks_of(folder)[minutes]}"
        load_model(averages[""], checkpoint / "model.safetensors")
        load_model(model, checkpoint / "online.safetensors")

    def draw(minutes: float, average: str, count: int, file: str, **sampling) -> dict:
        labels = None
        if configuration.labels:
            # each as often as among the real images
            labels = torch.tensor(dataset.targets)[torch.arange(count) * len(dataset) // count]
        steps = {name: sampling.get(name) for name in ("num_steps", "solver")}
        evaluations = averages[average].model.head.num_evaluations(**steps)
        load(minutes)
        row = _draw(averages[average], count, file, labels, **dict(precision=precision) | sampling)
        load(newest_mark(folder))
        return row | dict(evaluations=evaluations)

    serve(train=train, draw=draw)


def _draw(model, count: int, file: str, labels=None, **kwargs) -> dict:
    import numpy as np
    import torch

    torch.manual_seed(1)
    started = time.perf_counter()
    images = []
    for start in range(0, count, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, count)
        given = {} if labels is None else dict(labels=labels[start:stop])
        images.append(model.sample(batch_size=stop - start, **given, **kwargs))
    seconds = time.perf_counter() - started
    images = torch.cat(images).clamp(0, 1).permute(0, 2, 3, 1).mul(255).round().byte()
    np.save(file, images.cpu().numpy())
    return dict(seconds=seconds)


# what a configuration's folder holds


def as_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def marks_of(folder: Path) -> dict[float, int]:
    """The minutes of training that are saved, and the steps by then."""
    file = folder / "marks.json"
    return (
        {float(minutes): steps for minutes, steps in json.loads(file.read_text()).items()}
        if file.exists()
        else {}
    )


def newest_mark(folder: Path) -> float:
    return max(marks_of(folder), default=0.0)


def add_mark(folder: Path, minutes: float, steps: int) -> None:
    partial = folder / "marks.json.partial"
    partial.write_text(json.dumps(marks_of(folder) | {minutes: steps}))
    partial.replace(folder / "marks.json")


if __name__ == "__main__":
    description, folder, images = sys.argv[1:]
    configuration = Configuration(**json.loads(description))
    (work_as_peer if configuration.is_peer else work_as_ours)(configuration, Path(folder), images)
