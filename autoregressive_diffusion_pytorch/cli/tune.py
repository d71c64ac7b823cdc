"""`ardiff tune`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..utils.files import atomic_write_text, check_folder
from .measuring import checkpoint_and_output, data_of, feature_network
from .options import (
    COUNT,
    checkpoint_option,
    flag,
    one_line_errors,
    option,
    run_argument,
    seed_option,
)
from .run import check_kind, load_model, read_config


@click.command(short_help="Find the settings that draw a model's best images.")
@run_argument
@click.argument("source", metavar="[IMAGES]", required=False)
@checkpoint_option
@option(
    "--images",
    click.IntRange(2),
    "How many of IMAGES to take, evenly spread. [default: 2000 at most]",
)
@option("--count", COUNT, "Images to draw with each of the settings. [default: 500 to 2000]")
@option(
    "--features",
    None,
    "Network whose Fréchet distance decides, with recall beside it, as in evaluate. Without one "
    "the sliced Wasserstein distance does.",
    default="none",
)
@option("--batch-size", COUNT, "Images drawn at a time.", default=250)
@seed_option
@flag("--dry-run", "Print the table, but write no settings.")
def tune(
    run_folder: Path,
    source: str | None,
    checkpoint: int | None,
    images: int | None,
    count: int | None,
    features: str,
    batch_size: int,
    seed: int,
    dry_run: bool,
) -> None:
    """Search the settings that draw the best images of RUN, and keep them.

    Draws images with several settings, compares them with IMAGES, a folder or the word "digits",
    and writes the best settings into RUN/generation.json, from where sample, complete, evaluate and
    export take them.

    Tried are guidance by context and by label, temperature, and steps of the solver. Without IMAGES
    it takes those that RUN held out (`ardiff train --hold-out`), or those that it was trained on,
    and says so.
    """
    from ..evaluation.plots import plot_tuning
    from ..evaluation.tuning import tune
    from ..utils.modes import best_precision

    config = read_config(run_folder)
    check_kind(config, "tune", "images", "latents")
    folder, output = checkpoint_and_output(run_folder, checkpoint, None, "tune", ".json")
    if source is None and config["hold_out"] == 0:
        click.echo(
            "no image was held out: compared with those that the run was trained on", err=True
        )
        source = config["source"]
    with one_line_errors():
        if not dry_run:
            _check_settings_folder(run_folder)
        dataset = data_of(config, source, images or 2000)
        model, accelerator = load_model(config, folder)
        tuning = tune(
            model,
            dataset,
            count=count,
            features=feature_network(features, model, accelerator.device),
            batch_size=batch_size,
            seed=seed,
            progress=accelerator.is_main_process,
            precision=best_precision(),
        )
    if not accelerator.is_main_process:
        return
    report = dict(checkpoint=folder.name, source=source or "held out", images=len(dataset))
    report |= dict(seed=seed) | asdict(tuning)
    for line in _table([*tuning.rows, tuning.floor]):
        click.echo(line)
    with one_line_errors((OSError,)):
        atomic_write_text(output, json.dumps(report, indent=2))
    click.echo(output)
    try:
        plot_tuning(report, output.with_suffix(".png"))
        click.echo(output.with_suffix(".png"))
    except (ModuleNotFoundError, OSError) as error:  # the settings are worth more
        click.echo(error, err=True)
    given = tuning.settings.given().items()
    chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given)
    click.echo(f"best: {chosen or 'as learned'}")
    if not dry_run:
        click.echo(tuning.settings.save(run_folder))


def _check_settings_folder(run_folder: Path) -> None:
    try:
        check_folder("RUN", run_folder)
    except OSError as error:
        raise OSError(f"{error}. --dry-run only prints the settings") from error


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of numbers under their names; the last is the floor, the distance of two real halves."""
    names = [name for name in rows[0] if not name.endswith("_std")]
    cells = [[name.replace("_", " ") for name in names]]
    for row in rows:
        cells.append(["" if row.get(name) is None else f"{row[name]:.4g}" for name in names])
    cells[-1][0] = "floor"
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
