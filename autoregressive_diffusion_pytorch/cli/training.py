"""What `train` and `resume` share: the trainer of a run, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import one_line_errors
from .run import model_class, split

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..training.image_trainer import ImageTrainer


def build_trainer(
    config: dict[str, Any], dataset: Dataset, run_folder: Path, resume: bool = False
) -> ImageTrainer:
    from accelerate.utils import set_seed

    from ..training.image_trainer import ImageTrainer
    from ..utils.modes import best_precision

    precision = config["precision"]
    if precision == "auto":  # accelerate's own configuration first
        is_configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        precision = None if is_configured else best_precision()
    dataset, held_out = split(dataset, config)
    set_seed(config["seed"])  # for the weights
    with one_line_errors((ValueError, OSError)):
        return ImageTrainer(
            model_class(config)(**config["model"]),
            dataset=dataset,
            validation_dataset=held_out,
            checkpoints_folder=run_folder / "checkpoints",
            results_folder=run_folder / "samples",
            logs_folder=run_folder / "logs",
            seed=config["seed"],
            accelerate_kwargs=dict(
                mixed_precision=precision,
                gradient_accumulation_steps=config["accumulate"],
                dynamo_backend="inductor" if config["compile"] else None,
            ),
            dataloader_kwargs=dict(num_workers=config["workers"]),
            resume=resume,
            **config["trainer"],
        )


def run_trainer(trainer: ImageTrainer, run_folder: Path) -> None:
    from ..data.image_files import DamagedImageError
    from ..data.order import DeadWorkerError
    from ..training.loop import TrainingStopped

    def tell(message: object, **kwargs) -> None:
        if trainer.is_main:
            click.echo(message, **kwargs)

    tell(f"{len(trainer.dataset):,} images; the run is in {run_folder}", err=True)
    try:
        trainer()
    except DamagedImageError as error:
        fault = str(error).strip().splitlines()[-1]  # a worker sends where it came from before it
        raise click.ClickException(f"{fault}\n--skip-damaged leaves such files out") from error
    except FloatingPointError as error:
        how = f"go on from the last checkpoint with: ardiff resume {run_folder}"
        raise click.ClickException(f"{error}\n{how}") from error
    except (OSError, DeadWorkerError) as error:
        raise click.ClickException(str(error)) from error
    except TrainingStopped:
        tell(f"go on with: ardiff resume {run_folder}", err=True)
        raise
    tell(trainer.grids.path(trainer.step))
    tell(
        f"more of them: ardiff sample {run_folder}; settings that draw better ones: "
        f"ardiff tune {run_folder}",
        err=True,
    )
