"""`ardiff runs`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..runs.record import RunRecord, find_runs
from ..runs.summary import summary, table
from .options import OUTPUT, flag


@click.command(short_help="List the runs in a folder.")
@click.argument("folder", type=OUTPUT, default="runs")
@flag("--json", "Write JSON instead of a table.", "as_json")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER, by default runs/, however deep: what they are, how far they have
    come, and whether they are being trained.

    The loss is the lowest validation loss of a checkpoint, where images were held out, and else the
    running average in training; the distance that of the newest report of `ardiff evaluate`.
    """
    rows = [summary(RunRecord(found)) for found in find_runs(folder)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo(f"{folder} holds no runs: `ardiff train` starts one")
    else:
        for line in table(rows, folder):
            click.echo(line)
