"""`ardiff sample`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import run_argument
from .sampling import SamplingRun, sampling_options
from .sequences import save_sequences


@click.command(short_help="Draw images with a trained model.")
@run_argument
@sampling_options(64, "Images; with labels the next multiple of their number, a row for each.")
def sample(run_folder: Path, count: int, batch_size: int, **options) -> None:
    """Draw images with the model of RUN, into one picture and, if asked, into single files. A RUN
    on sequences draws them into files of the kind it was trained on, with labels into a folder for
    each class.
    """
    from ..evaluation.drawing import draw_images, draw_sequences

    run = SamplingRun(run_folder, f"sample.{options['seed']}", **options)
    numbers, labels, columns = run.numbers(count), run.labels, None
    if labels:
        import torch

        if not run.only:
            numbers = range(-(-count // len(labels)))  # of each label
        columns, count = len(numbers), max(numbers) + 1
        labels = torch.tensor(labels).repeat_interleave(count)
        only = [row * count + i for row in range(len(run.labels)) for i in numbers]
        kwargs = dict(only=only, labels=labels)
    else:
        kwargs = dict(only=numbers)
    kwargs |= dict(run.sample_kwargs, progress=run.is_main, batch_size=batch_size, seed=run.seed)
    if run.is_sequences:
        drawn = draw_sequences(run.model, count, **kwargs)
        own = run.labels and [label for label in run.labels for _ in numbers]
        save_sequences(run, drawn, own, numbers)
        return
    run.save(draw_images(run.model, count, **kwargs), columns, numbers)
