"""`ardiff check`."""

from __future__ import annotations

import click

from .options import flag, max_pixels_option, one_line_errors


@click.command(short_help="Report what is odd in a folder of images.")
@click.argument("folder")
@flag("--labels", "Each folder in FOLDER holds a class, as of `ardiff train --labels`.")
@max_pixels_option
@click.pass_context
def check(context: click.Context, folder: str, labels: bool, max_pixels: int) -> None:
    """Read all images of FOLDER, and report what is odd: files that cannot be read, suspicious
    ones, duplicates, odd sizes and modes, classes, and what is left out.

    Exits with 1 if files or folders cannot be read. With the extra "check", JPEG files are read
    more strictly.
    """
    from ..data.folder_report import has_strict_decoder, report_on

    with one_line_errors():
        report = report_on(folder, labels=labels, max_pixels=max_pixels, progress=True)
    for line in report.lines():
        click.echo(line)
    if not has_strict_decoder():
        how = "pip install 'autoregressive-diffusion-pytorch[check]'"
        click.echo(f"JPEG files whose decoder warns were not looked for: {how}", err=True)
    if report.faults:
        click.echo("`ardiff train --skip-damaged` leaves out what cannot be read", err=True)
    context.exit(0 if report.is_sound else 1)
