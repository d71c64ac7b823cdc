"""The folder of a run: its configuration, checkpoints, dataset and model."""

from __future__ import annotations

import atexit
import json
import math
from collections.abc import Callable
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..utils.files import atomic_write_text
from .options import one_line_errors

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import Dataset

    from ..models.image import ImageAutoregressive


def new_run(name: str) -> Path:
    """The first of `runs/NAME`, `runs/NAME-2`, … that is not there yet."""
    names = (name if i == 1 else f"{name}-{i}" for i in count_up(1))
    return next(folder for folder in (Path("runs") / n for n in names) if not folder.exists())


def read_config(run_folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((run_folder / "config.json").read_text())
    except FileNotFoundError:
        raise click.ClickException(
            f"{run_folder} holds no config.json: it is not the folder of a run"
        ) from None
    # of runs of earlier versions, which had no such options
    defaults = dict(classes=None, accumulate=1, compile=False, hold_out=0.0, num_images=None)
    defaults |= dict(used_precision=config["precision"])
    model = config["model"] | dict(model=dict(context_drop_prob=0.0) | config["model"]["model"])
    dataset = dict(labels_from_folders=False) | config["dataset"]
    return defaults | config | dict(dataset=dataset, model=model)


def write_config(config: dict[str, Any], run_folder: Path) -> None:
    atomic_write_text(run_folder / "config.json", json.dumps(config, indent=2))


def model_class(config: dict[str, Any]) -> type[ImageAutoregressive]:
    from ..models.presets import image_model_class

    return image_model_class(config["head"])


def listed(classes: list[str] | None) -> str:
    return ", ".join(classes) if classes else "none"


def checkpoint_of(run_folder: Path, step: int | None, default: Callable) -> Path:
    """The checkpoint of a step, or the one that `default` chooses."""
    from ..training.checkpoints import check_checkpoint

    checkpoints = run_folder / "checkpoints"
    folder = checkpoints / f"checkpoint.{step}" if step else default(checkpoints)
    if folder is None or not folder.is_dir():
        which = f" of step {step}" if step else ""
        raise click.ClickException(f"{checkpoints} holds no checkpoint{which}")
    with one_line_errors():
        check_checkpoint(folder)
    return folder


def dataset_of(
    config: dict[str, Any], source: str | None = None
) -> tuple[Dataset, list[str] | None]:
    """The images of a run, or of another source, and the names of their classes if it has any."""
    from torch.utils.data import TensorDataset

    from ..data.digits import digits
    from ..data.image_folder import ImageDataset

    options, source = config["dataset"], source or config["source"]
    has_labels = options["labels_from_folders"]
    with one_line_errors():
        if source == "digits":
            images, labels = digits()
            return (
                (TensorDataset(images, labels), list("0123456789"))
                if has_labels
                else (images, None)
            )
        size, channels = config["model"]["image_size"], config["model"]["channels"]
        dataset = ImageDataset(source, size, channels=channels, **options)
        return dataset, dataset.classes if has_labels else None


def split(dataset: Dataset, config: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """The images that a run trains on, and those that it holds out, None for none."""
    import torch
    from torch.utils.data import random_split

    hold_out, before = config["hold_out"], config.get("num_images")
    if hold_out == 0:
        return dataset, None
    if before not in (None, len(dataset)):
        raise click.ClickException(
            f"{config['source']} holds {len(dataset)} images, {before} when the run was started: "
            "other ones would be held out"
        )
    count = math.ceil(hold_out * len(dataset))
    if count == len(dataset):
        raise click.ClickException(
            f"--hold-out {hold_out} leaves none of {count} images to train on"
        )
    generator = torch.Generator().manual_seed(0)  # not the run's: runs compare on the same images
    return random_split(dataset, (len(dataset) - count, count), generator)


def load_model(config: dict[str, Any], checkpoint: Path) -> tuple[ImageAutoregressive, Accelerator]:
    """The model of a checkpoint on this process's device, with the run's generation settings."""
    from accelerate import Accelerator

    from ..models.settings import GenerationSettings

    accelerator = Accelerator()
    atexit.register(accelerator.state.destroy_process_group)  # or it may be aborted at the very end
    with one_line_errors((ValueError,)):
        model = model_class(config).from_pretrained(checkpoint).to(accelerator.device)
        model.generation = GenerationSettings.load(checkpoint.parents[1])
    return model, accelerator


def label_of(name: str, classes: list[str]) -> int:
    """The label of a class that is given by its name or number."""
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise click.BadParameter(
        f"{name!r} is none of {', '.join(classes)}, nor the number of one", param_hint="--label"
    )
