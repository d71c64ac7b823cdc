"""`ardiff complete`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, option, run_argument
from .sampling import SamplingRun, sampling_options


@click.command(short_help="Draw the rest of an image, below its first rows.")
@run_argument
@click.argument("image_file", metavar="IMAGE", type=FILE)
@option(
    "--keep-rows",
    click.IntRange(0),
    "Rows of pixels to keep: a multiple of the patch size.",
    required=True,
)
@sampling_options(8, "Completions; of each label, if it draws labels.")
def complete(
    run_folder: Path, image_file: Path, keep_rows: int, count: int, batch_size: int, **options
) -> None:
    """Draw the rest of IMAGE, scaled and cropped to the model of RUN, below its first rows."""
    output = f"complete.{image_file.stem}.{options['seed']}.png"
    run = SamplingRun(run_folder, output, **options)
    image = run.read(image_file)
    run.save_completions(run.model.complete, (image, keep_rows), count, batch_size)
