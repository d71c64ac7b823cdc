"""What `sample` and `complete` share: their options, the run they draw with, and its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..utils.files import check_folder
from .options import (
    COUNT,
    FACTOR,
    OUTPUT,
    SEED,
    add_options,
    checkpoint_option,
    drawing_precision_option,
    flag,
    one_line_errors,
    option,
)
from .run import checkpoint_of, label_of, load_model, output_file, read_config

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = ("min_seq_len", "seq_len")
TUNED = "[default: what `ardiff tune` wrote, else"


def sampling_options(default_count: int, counted: str):
    """The options of the commands that draw, named as the arguments of `sample`."""
    return add_options(
        option("--count", COUNT, counted, default=default_count),
        option(
            "--only",
            click.IntRange(0),
            "Draw only the image of this number, from 0, with labels one of each; several if given "
            "several times.",
            multiple=True,
        ),
        option(
            "--output",
            OUTPUT,
            "File of the grid, or folder of sequences. [default: one in the run's samples/, or "
            "here if that cannot be written, named after the seed]",
        ),
        option("--files", OUTPUT, "Also write each image as a file into this folder."),
        checkpoint_option,
        option(
            "--label",
            None,
            "What to draw, the name or number of a class; several if given several times. "
            "[default: all]",
            "names",
            multiple=True,
            metavar="NAME",
        ),
        option(
            "--guidance",
            FACTOR,
            f"Above 1 to follow labels more closely; 0 for no label. {TUNED} 1]",
            "guidance_scale",
        ),
        option(
            "--guidance-schedule",
            click.Choice(["constant", "linear"]),
            f"Linear grows from about 1 at the first token. {TUNED} constant]",
        ),
        option(
            "--guidance-interval",
            (float, float),
            f"Guide only between these noise levels (sigma). {TUNED} at all]",
            metavar="LOW HIGH",
        ),
        option(
            "--context-guidance",
            FACTOR,
            "Above 1 to follow the tokens so far, and labels, more closely; 1 as learned. "
            f"{TUNED} 1]",
        ),
        option(
            "--guidance-target",
            click.Choice(["tokens", "conditions"]),
            "What guidance moves: the head's tokens, or the conditions that it reads, at no cost. "
            f"{TUNED} tokens]",
        ),
        option(
            "--solver",
            None,
            "Solver of the head's sampler: dpmpp_2m, euler or heun, and of a flow_map map. "
            f"{TUNED} the head's]",
        ),
        option(
            "--steps",
            COUNT,
            f"Steps of the solver per token. {TUNED} as many as suit it]",
            "num_steps",
        ),
        option(
            "--order",
            click.Choice(["raster", "random"]),
            "Of the tokens, with a run of --order random or masked. [default: random]",
        ),
        option(
            "--iterations",
            COUNT,
            "Passes of the transformer, each for some tokens, with such a run. "
            f"{TUNED} one token each, of a masked run 8 or more passes]",
            "num_iterations",
        ),
        option(
            "--min-length",
            COUNT,
            "Least number of tokens, of a run that learned where sequences end.",
            "min_seq_len",
        ),
        option("--max-length", COUNT, "Most tokens of a sequence.", "seq_len"),
        option(
            "--end-threshold",
            click.FloatRange(0, 1),
            "Of such a run: end where that is more probable than this; by default ends are drawn.",
        ),
        option("--temperature", FACTOR, f"Below 1 for less variety. {TUNED} 1]"),
        option("--batch-size", COUNT, "Images, or sequences, drawn at a time.", default=64),
        drawing_precision_option,
        flag("--compile", "Compile the model first: takes minutes, and pays for many images."),
        option(
            "--seed", SEED, "Image i of a seed is the same for any count and batch size.", default=0
        ),
    )


class SamplingRun:
    """A run that draws images: its model, the arguments of `sample`, and where the images go."""

    def __init__(
        self,
        run_folder: Path,
        default_output: str,
        *,
        output: Path | None,
        files: Path | None,
        checkpoint: int | None,
        names: tuple[str, ...],
        only: tuple[int, ...],
        precision: str,
        seed: int,
        **sample_kwargs,
    ):
        from ..models.settings import GuidanceSchedule
        from ..utils.modes import best_precision

        self.config = config = read_config(run_folder)
        self.is_sequences = config["kind"] == "sequences"
        folder = checkpoint_of(run_folder, checkpoint)
        if self.is_sequences:
            if files is not None:
                raise click.UsageError("--files is of images: sequences are files anyway")
            self.output = output or run_folder / "samples" / default_output
            with one_line_errors((OSError,)):
                check_folder("--output", self.output)
        else:
            default_output = f"samples/{default_output}.png"
            self.output = output_file(run_folder, output, default_output, ".png")
            for name in LENGTHS:
                if sample_kwargs.pop(name) is not None:
                    raise click.UsageError(f"{name} is of sequences, RUN draws images")
        if files is not None:
            with one_line_errors((OSError,)):
                check_folder("--files", files)
        self.files = files
        self.only = only
        self.seed = seed
        self.model, accelerator = load_model(config, folder)
        self.device, self.is_main = accelerator.device, accelerator.is_main_process
        precision = best_precision() if precision == "auto" else precision
        self.classes = config["classes"]
        self.sample_kwargs = dict(sample_kwargs, precision=precision)
        with one_line_errors():
            given = self.model.generation.with_given(sample_kwargs, self.model.head)
            guidance = ("guidance_scale", "guidance_schedule", "guidance_interval")
            schedule = GuidanceSchedule(*map(given.get, guidance))
            self.labels = self._labels(names, schedule.is_unconditional)
            self.model.stream(labels=self.labels, **self.sample_kwargs)  # checks them

    def _labels(self, names: tuple[str, ...], unconditional: bool) -> list[int] | None:
        """The labels to draw, None for none."""
        if self.classes is None:
            if names:
                raise click.ClickException(
                    "the run has no labels: `ardiff train --labels` trains one that has"
                )
            return None
        labels = [label_of(name, self.classes) for name in names]
        if unconditional:
            if labels:
                raise click.ClickException("--guidance 0 draws without labels: leave out --label")
            return None
        return labels or list(range(len(self.classes)))

    def numbers(self, count: int) -> Sequence[int]:
        """The numbers of the images to draw."""
        return list(dict.fromkeys(self.only)) or range(count)

    def read(self, file: Path, channels: int | None = None) -> Tensor:
        """An image (1 c h w) of a file, scaled and cropped to the model."""
        from ..data.image_files import read_image

        with one_line_errors((ValueError,)):
            image = read_image(file, self.model.image_size, channels or self.model.channels)
        return image.unsqueeze(0).to(self.device)

    def save_completions(
        self, draw: Callable[..., Tensor], given: tuple, count: int, batch_size: int
    ) -> None:
        """Writes completions by a method of the model, which is given an image and its region."""
        import torch

        from ..utils.rng import generator_for

        numbers, drawn = self.numbers(count), []
        with one_line_errors((ValueError,)):
            for label in self.labels or [None]:
                key = (self.seed,) if label is None else (self.seed, label)
                for start in range(0, len(numbers), batch_size):
                    batch = numbers[start : start + batch_size]
                    generators = [generator_for(*key, i, device=self.device) for i in batch]
                    own = dict(num_completions=len(batch), labels=label, generator=generators)
                    drawn.append(draw(*given, **own, **self.sample_kwargs, progress=True).cpu())
        self.save(torch.cat(drawn), len(numbers) if self.labels else None, numbers)

    def save(self, images, columns: int | None, numbers: Sequence[int]) -> None:
        """Writes the grid, with labels a row of `columns` images for each, and the files.

        Only the main process writes.
        """
        if not self.is_main:
            return
        from ..data.image_grids import save_image_files, save_image_grid

        names = self.labels and [self.classes[label] for label in self.labels]
        with one_line_errors((OSError,)):
            save_image_grid(images, self.output, columns, names)
            click.echo(self.output)
            if self.files:
                save_image_files(images, self.files, None if self.labels else numbers)
                click.echo(f"{self.files}: {len(images)} files")
