"""What `train` and `resume` share: the trainer of a run, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import in_options, one_line_errors
from .run import new_model, split, write_config
from .serve import page_beside
from .sources import is_built_in

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..models.image import ImageAutoregressive
    from ..training.image_trainer import ImageTrainer
    from ..training.sequence_trainer import SequenceTrainer


def check_apart(run_folder: Path, source: str, option: str = "--run") -> None:
    """Whether a run lies outside its data."""
    if not is_built_in(source) and run_folder.resolve().is_relative_to(Path(source).resolve()):
        raise click.ClickException(
            f"{run_folder} lies in {source}, its samples would be trained on: name another folder "
            f"with {option}"
        )


def check_free(run_folder: Path) -> None:
    """Whether a folder holds no run that has begun."""
    from ..utils.manifests import list_checkpoints

    if checkpoints := list_checkpoints(run_folder / "checkpoints"):
        raise click.ClickException(
            f"{run_folder} already holds a run with {checkpoints[-1].name}: "
            f"`ardiff resume {run_folder}` goes on with it"
        )


def start_run(
    config: dict[str, Any],
    dataset: Dataset,
    run_folder: Path,
    model: ImageAutoregressive | None = None,
    write: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Trains a new run, of a new model or a given one; `write(folder)` adds files to it."""
    trainer = build_trainer(config, dataset, run_folder, model=model)
    precision = trainer.accelerator.mixed_precision
    config |= dict(used_precision=precision, num_images=len(dataset))
    trainer.accelerator.wait_for_everyone()  # until all have seen that the run's folder is free
    if trainer.is_main:
        run_folder.mkdir(parents=True, exist_ok=True)
        write(run_folder)
        write_config(config, run_folder)
    run_trainer(trainer, run_folder)


def build_trainer(
    config: dict[str, Any],
    dataset: Dataset,
    run_folder: Path,
    resume: bool | Literal["auto"] = False,
    model: ImageAutoregressive | None = None,
) -> ImageTrainer | SequenceTrainer:
    from ..training.image_trainer import ImageTrainer
    from ..training.progress import Progress
    from ..training.sequence_trainer import SequenceTrainer
    from ..utils.modes import best_precision
    from ..utils.rng import seed_process

    precision = config["precision"]
    if precision == "auto":  # accelerate's own configuration first
        is_configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        precision = None if is_configured else best_precision()
    dataset, held_out = split(dataset, config)
    seed_process(config["seed"], rank=0)  # for the weights
    kinds = (ValueError, TypeError, OSError, ModuleNotFoundError)
    with one_line_errors(kinds), _explained(run_folder):
        trainer_class = SequenceTrainer if config["kind"] == "sequences" else ImageTrainer
        trainer = trainer_class(
            new_model(config, run_folder) if model is None else model,
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
            parts=[Progress(run_folder)],
            resume=resume,
            **config["trainer"],
        )
    trainer.how_to_resume = f"`ardiff resume {run_folder}` goes on from there"
    return trainer


@contextmanager
def _explained(run_folder: Path) -> Iterator[None]:
    """Adds to errors what a user of commands can do."""
    from ..data.image_files import DamagedImageError

    try:
        yield
    except DamagedImageError as error:
        raise ValueError(f"{error}\n--skip-damaged leaves such files out") from error
    except TypeError as error:
        if "unexpected keyword argument" in str(error) and (run_folder / "config.json").exists():
            raise TypeError(f"{run_folder / 'config.json'}: {error}") from error
        raise


def run_trainer(trainer: ImageTrainer | SequenceTrainer, run_folder: Path) -> None:
    import torch

    from ..data.image_files import DamagedImageError
    from ..data.order import DeadWorkerError
    from ..training.loop import TrainingStopped
    from ..training.together import one_line

    def tell(message: object, **kwargs) -> None:
        if trainer.is_main:
            click.echo(message, **kwargs)

    def fail(error: Exception, how: str) -> click.ClickException:
        return click.ClickException(f"{in_options(one_line(error))}\n{how}")

    go_on = f"ardiff resume {run_folder}"
    serves = trainer.is_main and click.get_current_context().meta["serves"]
    tell(f"{len(trainer.dataset):,} {trainer.item}s; the run is in {run_folder}", err=True)
    try:
        with page_beside(run_folder) if serves else nullcontext():
            trainer()
    except DamagedImageError as error:
        raise fail(error, f"leave such files out with: {go_on} --skip-damaged") from error
    except (FloatingPointError, OSError) as error:
        raise fail(error, f"go on from the last checkpoint with: {go_on}") from error
    except DeadWorkerError as error:
        raise fail(error, f"go on with: {go_on} --workers 0") from error
    except torch.OutOfMemoryError as error:
        less = f"{go_on} --batch-size {max(trainer.batch_size // 2, 1)} --accumulate 2"
        raise fail(error, f"go on with less at a time: {less}") from error
    except TrainingStopped as stopped:
        tell(f"go on with: {go_on}", err=True)
        raise SystemExit(stopped.code) from stopped
    for drawn in trainer.samples.files(trainer.step):
        if drawn.exists():
            tell(drawn)
    better = f"; settings that draw better ones: ardiff tune {run_folder}"
    better = "" if trainer.item == "sequence" else better
    tell(f"more of them: ardiff sample {run_folder}{better}", err=True)
