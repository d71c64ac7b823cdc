"""`ardiff complete`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, one_line_errors, option, run_argument
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
    import torch

    from ..data.image_files import read_image

    output = f"complete.{image_file.stem}.{options['seed']}.png"
    run = SamplingRun(run_folder, output, **options)
    model = run.model
    generator = torch.Generator(run.device).manual_seed(run.seed)
    kwargs = dict(run.sample_kwargs, generator=generator, progress=True)
    with one_line_errors((ValueError,)):
        image = read_image(image_file, model.image_size, model.channels)
        image = image.unsqueeze(0).to(run.device)
        completions = []
        for label in run.labels or [None]:
            for start in range(0, count, batch_size):
                size = min(batch_size, count - start)
                options = dict(num_completions=size, labels=label, **kwargs)
                completions.append(model.complete(image, keep_rows, **options).cpu())
    run.save(torch.cat(completions), count if run.labels else None)
