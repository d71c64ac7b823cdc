"""`ardiff resume`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import COUNT, POSITIVE, option, run_argument
from .run import dataset_of, listed, read_config, write_config
from .training import build_trainer, run_trainer


@click.command(short_help="Go on with a training run.")
@run_argument
@option("--steps", COUNT, "Train up to this step. [default: as when the run was started]")
@option("--minutes", POSITIVE, "End after this time, even if steps are left.")
@option("--learning-rate", POSITIVE, "From now on. [default: as before]")
@option("--nonfinite", click.Choice(["stop", "skip"]), "From now on. [default: as before]")
def resume(run_folder: Path, steps: int | None, minutes: float | None, **changes) -> None:
    """Go on with RUN from its newest whole checkpoint, as if it had never stopped."""
    config = read_config(run_folder)
    config["trainer"]["max_minutes"] = minutes
    config["trainer"] |= {name: value for name, value in changes.items() if value is not None}
    if steps is not None:
        config["trainer"] |= dict(num_train_steps=steps, num_epochs=None)
    dataset, classes = dataset_of(config)
    if classes != config["classes"]:
        raise click.ClickException(
            f"{config['source']} has other classes than when the run was started: "
            f"{listed(classes)} instead of {listed(config['classes'])}"
        )
    trainer = build_trainer(config, dataset, run_folder, resume=True)
    step, last = trainer.step, trainer.num_train_steps
    if step >= last:
        raise click.ClickException(
            f"{run_folder} is at step {step} of {last}: --steps asks for more"
        )
    if trainer.is_main:
        write_config(config, run_folder)
    run_trainer(trainer, run_folder)
