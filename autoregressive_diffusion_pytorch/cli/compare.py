"""`ardiff compare`."""

from __future__ import annotations

from pathlib import Path

import click

from ..runs.comparison import compare_runs
from ..utils.files import check_file
from .options import COUNT, OUTPUT, RUN, one_line_errors, option


@click.command(short_help="Show runs side by side, in one page or picture.")
@click.argument("folders", metavar="RUN RUN...", type=RUN, nargs=-1, required=True)
@option(
    "--step",
    COUNT,
    "Of the samples. [default: the last of the run that has come least far, if all have samples of "
    "it, else the last of each]",
)
@option("--output", OUTPUT, "File of the result, .html or .png.", default="compare.html")
def compare(folders: tuple[Path, ...], step: int | None, output: Path) -> None:
    """Write samples, settings that differ, numbers and loss curves of two or more RUNs side by side
    into one file: a page that needs no other file, or a picture.
    """
    if len(folders) < 2:
        raise click.UsageError("compare takes two runs or more")
    if output.suffix.lower() not in (".html", ".png"):
        raise click.BadParameter(f"{output} must end in .html or .png", param_hint="--output")
    with one_line_errors():
        check_file("--output", output)
        comparison = compare_runs(folders, step)
        if output.suffix.lower() == ".png":
            from ..runs.comparison_picture import write_picture

            write_picture(comparison, output)
        else:
            from ..runs.comparison_page import write_page

            write_page(comparison, output)
    click.echo(output)
