"""The folder of a run: `config.json`, `checkpoints/`, `samples/` and `logs/`. What is wrong with it is told in one line."""

from __future__ import annotations

import json
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
    return defaults | config | dict(dataset=dict(labels_from_folders=False) | config["dataset"])


def write_config(config: dict, run_folder: Path) -> None:
    partial = run_folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2))
    partial.replace(run_folder / "config.json")


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
