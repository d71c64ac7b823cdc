"""`ardiff sample`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import run_argument
from .sampling import SamplingRun, sampling_options


@click.command(short_help="Draw images with a trained model.")
@run_argument
@sampling_options(64, "Images; with labels the next multiple of their number, a row for each.")
def sample(run_folder: Path, count: int, batch_size: int, **options) -> None:
    """Draw images with the model of RUN, into one picture and, if asked, into single files."""
    from ..evaluation.drawing import draw_images

    run = SamplingRun(run_folder, f"sample.{options['seed']}.png", **options)
    labels, columns = run.labels, None
    if labels:
        import torch

        columns = -(-count // len(labels))
        labels, count = torch.tensor(labels).repeat_interleave(columns), columns * len(labels)
    kwargs = dict(run.sample_kwargs, labels=labels, progress=run.is_main)
    images = draw_images(run.model, count, batch_size=batch_size, seed=run.seed, **kwargs)
    run.save(images, columns)
