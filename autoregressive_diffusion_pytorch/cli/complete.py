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
    from ..utils.rng import generator_for

    output = f"complete.{image_file.stem}.{options['seed']}.png"
    run = SamplingRun(run_folder, output, **options)
    model, numbers = run.model, run.numbers(count)
    kwargs = dict(run.sample_kwargs, progress=True)
    with one_line_errors((ValueError,)):
        image = read_image(image_file, model.image_size, model.channels)
        image = image.unsqueeze(0).to(run.device)
        completions = []
        for label in run.labels or [None]:
            key = (run.seed,) if label is None else (run.seed, label)
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                generators = [generator_for(*key, i, device=run.device) for i in batch]
                options = dict(num_completions=len(batch), labels=label, generator=generators)
                completions.append(model.complete(image, keep_rows, **options, **kwargs).cpu())
    run.save(torch.cat(completions), len(numbers) if run.labels else None, numbers)
