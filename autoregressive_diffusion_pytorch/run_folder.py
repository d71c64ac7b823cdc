"""The folder of a run: configuration, checkpoints, samples, logs, evaluations, generation settings.

What is wrong with it is told in one line.
"""

from __future__ import annotations

import atexit
import json
import math
from itertools import count as count_up
from pathlib import Path

import click

SEED = click.IntRange(0, 2**31 - 1)  # each process adds its number, and a seed must stay below 2**32


def new_run(name: str) -> Path:
    """The first of `runs/NAME`, `runs/NAME-2`, … that is not there yet."""
    names = (name if i == 1 else f"{name}-{i}" for i in count_up(1))
    return next(folder for folder in (Path("runs") / n for n in names) if not folder.exists())


def read_config(run_folder: Path) -> dict:
    try:
        config = json.loads((run_folder / "config.json").read_text())
    except FileNotFoundError:
        raise click.ClickException(f"{run_folder} holds no config.json: it is not the folder of a run") from None
    # of runs of earlier versions, which had no such options
    defaults = dict(classes=None, accumulate=1, compile=False, hold_out=0.0, num_images=None, used_precision=config["precision"])
    model = config["model"] | dict(model=dict(context_drop_prob=0.0) | config["model"]["model"])
    return defaults | config | dict(dataset=dict(labels_from_folders=False) | config["dataset"], model=model)


def write_config(config: dict, run_folder: Path) -> None:
    write_whole(run_folder / "config.json", json.dumps(config, indent=2))


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is never there in part."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


def model_class(config: dict):
    from autoregressive_diffusion_pytorch import ImageAutoregressiveDiffusion, ImageAutoregressiveFlow

    return {"diffusion": ImageAutoregressiveDiffusion, "flow": ImageAutoregressiveFlow}[config["head"]]


def listed(classes: list[str] | None) -> str:
    return ", ".join(classes) if classes else "none"


def checkpoint_of(run_folder: Path, step: int | None, default) -> Path:
    """The checkpoint of a step, or the one that `default` chooses. What is wrong is told in one line."""
    from autoregressive_diffusion_pytorch.checkpoints import DamagedCheckpointError, check_checkpoint

    checkpoints = run_folder / "checkpoints"
    folder = checkpoints / f"checkpoint.{step}" if step else default(checkpoints)
    if folder is None or not folder.is_dir():
        raise click.ClickException(f"{checkpoints} holds no checkpoint{f' of step {step}' if step else ''}")
    try:
        check_checkpoint(folder)
    except DamagedCheckpointError as error:
        raise click.ClickException(str(error)) from error
    return folder


def dataset_of(config: dict, source: str | None = None):
    """The images of a run, or of another source as that run sees them, and the names of their classes if it has any."""
    from torch.utils.data import TensorDataset

    from autoregressive_diffusion_pytorch.image_dataset import ImageDataset, digits

    options, source = config["dataset"], source or config["source"]
    try:
        if source == "digits":
            images, labels = digits()
            return (TensorDataset(images, labels), list("0123456789")) if options["labels_from_folders"] else (images, None)
        size, channels = config["model"]["image_size"], config["model"]["channels"]
        dataset = ImageDataset(source, size, channels=channels, **options)
        return dataset, dataset.classes if options["labels_from_folders"] else None
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error


def split(dataset, config: dict):
    """The images that a run trains on, and those that it holds out, None for none."""
    import torch
    from torch.utils.data import random_split

    hold_out = config["hold_out"]
    if hold_out == 0:
        return dataset, None
    if config.get("num_images") not in (None, len(dataset)):
        raise click.ClickException(
            f"{config['source']} holds {len(dataset)} images, {config['num_images']} when the run was started: other ones would be "
            "held out"
        )
    count = math.ceil(hold_out * len(dataset))
    if count == len(dataset):
        raise click.ClickException(f"--hold-out {hold_out} leaves none of {count} images to train on")
    generator = torch.Generator().manual_seed(0)  # not the run's seed: runs compare on the same images
    return random_split(dataset, (len(dataset) - count, count), generator)


def load_model(config: dict, checkpoint: Path):
    """The model of a run's checkpoint on this process's device, with the run's generation settings, and accelerate's account of the
    processes."""
    from accelerate import Accelerator

    from autoregressive_diffusion_pytorch.generation import GenerationSettings

    accelerator = Accelerator()
    atexit.register(accelerator.state.destroy_process_group)  # or it may be aborted at the very end
    model = model_class(config).from_pretrained(checkpoint).to(accelerator.device)
    try:
        model.generation = GenerationSettings.load(checkpoint.parents[1])
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    return model, accelerator


def label_of(name: str, classes: list[str]) -> int:
    """The label of a class that is given by its name or number."""
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise click.BadParameter(f"{name!r} is none of {', '.join(classes)}, nor the number of one", param_hint="--label")
