"""The folder of a run: its configuration, checkpoints, dataset and model."""

from __future__ import annotations

import atexit
import json
import math
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runs.config import read_config as config_of
from ..utils.files import atomic_write_text, check_file
from .options import one_line_errors

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import Dataset

    from ..models.image import ImageAutoregressive
    from ..models.sequence_model import SequenceModel


TEACHER = "teacher"  # the folder of a distillation's teacher
INITIAL = "initial"  # of the model that a fine-tuning starts with


def new_run(name: str) -> Path:
    """The first of `runs/NAME`, `runs/NAME-2`, … that is not there yet."""
    names = (name if i == 1 else f"{name}-{i}" for i in count_up(1))
    return next(folder for folder in (Path("runs") / n for n in names) if not folder.exists())


def read_config(run_folder: Path) -> dict[str, Any]:
    """The configuration of a run, whose head is known."""
    from ..heads.head import head_class

    try:
        config = config_of(run_folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        head_class(config["head"])
    except ValueError as error:
        raise click.ClickException(f"{run_folder / 'config.json'}: {error}") from error
    return config


def write_config(config: dict[str, Any], run_folder: Path) -> None:
    atomic_write_text(run_folder / "config.json", json.dumps(config, indent=2))


def model_class(config: dict[str, Any]) -> type[ImageAutoregressive] | type[SequenceModel]:
    """The class of a run's model."""
    from ..models.presets import image_model_class

    if config["kind"] == "sequences":
        return sequence_model_class_of(config)
    return image_model_class(config["head"], config["order"])


def sequence_model_class_of(config: dict[str, Any]) -> type[SequenceModel]:
    """The class of its sequence model, which that of images holds."""
    from ..models.presets import sequence_model_class

    return sequence_model_class(config["head"], config["order"])


def new_model(config: dict[str, Any], run_folder: Path) -> ImageAutoregressive:
    """The model that a run starts with; of a distillation, with the run's teacher."""
    cls = model_class(config)
    if config["teacher"] is None and config["from"] is None:
        return cls(**config["model"])
    if config["teacher"] is None:
        from ..models.finetuning import freeze_parts

        model = cls.from_pretrained(run_folder / INITIAL, **autoencoder_of(config))
        freeze_parts(model, config["freeze"])
        return model
    from ..models.distillation import distilled
    from ..models.presets import image_model_class

    teacher_class = image_model_class(config["teacher"], config["order"])
    teacher = teacher_class.from_pretrained(run_folder / TEACHER, **autoencoder_of(config))
    return distilled(
        teacher, config["head"], config["model"]["model"][cls.model_class.head_argument()]
    )


def listed(classes: list[str] | None) -> str:
    return ", ".join(classes) if classes else "none"


def checkpoint_of(run_folder: Path, step: int | None) -> Path:
    """The checkpoint of a step, by default that of the lowest validation loss, else the newest."""
    from ..utils.manifests import best_checkpoint, check_checkpoint

    checkpoints = run_folder / "checkpoints"
    folder = checkpoints / f"checkpoint.{step}" if step else best_checkpoint(checkpoints)
    if folder is None or not folder.is_dir():
        which = f" of step {step}" if step else ""
        raise click.ClickException(f"{checkpoints} holds no checkpoint{which}")
    with one_line_errors():
        check_checkpoint(folder)
    return folder


def say_checkpoint(folder: Path) -> None:
    from ..utils.manifests import validation_loss

    loss = validation_loss(folder)
    fact = "no validation loss" if loss is None else f"validation loss {loss:.4f}"
    click.echo(f"{folder.name} ({fact})", err=True)


def check_kind(config: dict[str, Any], command: str, *kinds: str) -> None:
    """Whether a command works on runs of this kind of data."""
    if config["kind"] not in kinds:
        raise click.ClickException(
            f"`ardiff {command}` is for runs on {' or '.join(kinds)}; this one is on "
            f"{config['kind']}"
        )


def split(dataset: Dataset, config: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """The items that a run trains on, and those that it holds out, None for none."""
    import torch
    from torch.utils.data import Subset, random_split

    hold_out, before = config["hold_out"], config.get("num_images")
    if hold_out == 0:
        return dataset, None
    # a file that is left out since moves no other one from one part to the other
    damaged = getattr(dataset, "damaged", [])
    places = list(range(len(dataset)))
    if damaged and before == len(dataset) + len(damaged):
        place_of = {path: i for i, path in enumerate(dataset.paths)}
        places = [place_of.get(path) for path in sorted((*dataset.paths, *damaged))]
    if before not in (None, len(places)):
        raise click.ClickException(
            f"{config['source']} holds {len(dataset)} {config['kind']}, {before} when the run was "
            "started: other ones would be held out. "
            f"`ardiff resume --hold-out {hold_out:g}` holds out some anew"
        )
    count = math.ceil(hold_out * len(places))
    if count == len(places):
        raise click.ClickException(
            f"--hold-out {hold_out} leaves none of {count} {config['kind']} to train on"
        )
    generator = torch.Generator().manual_seed(0)  # not the run's: runs compare on the same images
    parts = random_split(places, (len(places) - count, count), generator)
    kept, held_out = ([places[i] for i in part.indices] for part in parts)
    kept, held_out = ([i for i in part if i is not None] for part in (kept, held_out))
    plain = dataset.without_augmentation() if hasattr(dataset, "without_augmentation") else dataset
    return Subset(dataset, kept), Subset(plain, held_out) if held_out else None


def autoencoder_of(config: dict[str, Any]) -> dict[str, str]:
    """Where the configuration of a run says that its autoencoder lies, for `from_pretrained`."""
    return {name: config["model"][name] for name in ("autoencoder",) if config["model"].get(name)}


def load_model(config: dict[str, Any], checkpoint: Path) -> tuple[ImageAutoregressive, Accelerator]:
    """The model of a checkpoint on this process's device, with the run's generation settings."""
    from accelerate import Accelerator

    from ..models.settings import GenerationSettings

    accelerator = Accelerator()
    atexit.register(accelerator.state.destroy_process_group)  # or it may be aborted at the very end
    with one_line_errors((ValueError, OSError)):
        model = model_class(config).from_pretrained(checkpoint, **autoencoder_of(config))
        model = model.to(accelerator.device)
        model.generation = GenerationSettings.load(checkpoint.parents[1])
    if accelerator.is_main_process:
        say_checkpoint(checkpoint)
    return model, accelerator


def output_file(run_folder: Path, given: Path | None, default: str, ending: str) -> Path:
    """The file for a result, which can be written: of --output, or by default one in the run.

    A run that cannot be written has it in the current folder.
    """
    file = given or run_folder / default
    if file.suffix.lower() != ending:
        raise click.BadParameter(f"{file} must end in {ending}", param_hint="--output")
    try:
        check_file("--output", file)
    except OSError as error:
        if given is not None:
            raise click.ClickException(str(error)) from error
        reason, file = error, Path(f"{run_folder.resolve().name}.{file.name}")
        with one_line_errors((OSError,)):
            check_file("--output", file)
        click.echo(f"{str(reason).removeprefix('--output ')}; {file} is written instead", err=True)
    return file


def label_of(name: str, classes: list[str]) -> int:
    """The label of a class that is given by its name or number."""
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise click.BadParameter(
        f"{name!r} is none of {', '.join(classes)}, nor the number of one", param_hint="--label"
    )
