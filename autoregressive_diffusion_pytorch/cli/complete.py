"""`ardiff complete`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, option, run_argument
from .sampling import SamplingRun, sampling_options
from .sequences import complete_sequence


@click.command(short_help="Draw the rest of an image, below its first rows.")
@run_argument
@click.argument("image_file", metavar="IMAGE", type=FILE)
@option(
    "--keep-rows",
    click.IntRange(0),
    "Rows of pixels to keep, a multiple of the patch size; or tokens of a sequence.",
    required=True,
)
@sampling_options(8, "Completions; of each label, if it draws labels.")
def complete(
    run_folder: Path, image_file: Path, keep_rows: int, count: int, batch_size: int, **options
) -> None:
    """Draw the rest of IMAGE, scaled and cropped to the model of RUN, below its first rows; or of a
    sequence, a file of the kind that RUN was trained on, after its first tokens.
    """
    output = f"complete.{image_file.stem}.{options['seed']}"
    run = SamplingRun(run_folder, output, **options)
    if run.is_sequences:
        complete_sequence(run, image_file, keep_rows, count, batch_size)
        return
    image = run.read(image_file)
    run.save_completions(run.model.complete, (image, keep_rows), count, batch_size)
