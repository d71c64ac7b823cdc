"""The commands that draw images with a trained model: `ardiff sample` and `ardiff complete`."""

from __future__ import annotations

from pathlib import Path

import click

from autoregressive_diffusion_pytorch.run_folder import SEED, checkpoint_of, label_of, load_model, read_config

TUNED = "[default: what `ardiff tune` wrote, else"


def _sampling_options(default_count: int, counted: str):
    """The options that the commands which draw images share."""
    options = [
        click.option("--count", type=click.IntRange(1), default=default_count, show_default=True, help=counted),
        click.option(
            "--output",
            type=click.Path(path_type=Path),
            help="File of the grid. [default: one in the run's samples/, named after the seed]",
        ),
        click.option(
            "--files", type=click.Path(file_okay=False, path_type=Path), help="Also write each image as a file into this folder."
        ),
        click.option("--checkpoint", type=click.IntRange(1), help="Step of the checkpoint to use. [default: the newest]"),
        click.option(
            "--label",
            "names",
            multiple=True,
            metavar="NAME",
            help="What to draw, the name or number of a class; several of them if given several times. [default: all]",
        ),
        click.option(
            "--guidance", type=click.FloatRange(0), help=f"Above 1 to follow labels more closely; 0 for no label. {TUNED} 1]"
        ),
        click.option(
            "--guidance-schedule",
            type=click.Choice(["constant", "linear"]),
            help=f"Linear grows from about 1 at the first token. {TUNED} constant]",
        ),
        click.option(
            "--guidance-interval",
            type=(float, float),
            metavar="LOW HIGH",
            help=f"Guide only between these noise levels. {TUNED} at all]",
        ),
        click.option(
            "--context-guidance",
            type=click.FloatRange(0),
            help=f"Above 1 to follow what is drawn already, and labels, more closely; 1 as learned. {TUNED} 1]",
        ),
        click.option("--solver", help=f"Solver of the head's sampler: dpmpp_2m, euler or heun. {TUNED} the head's]"),
        click.option("--steps", type=click.IntRange(1), help=f"Steps of the solver per token. {TUNED} as many as suit it]"),
        click.option("--temperature", type=click.FloatRange(0), help=f"Below 1 for less variety. {TUNED} 1]"),
        click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images drawn at a time."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "no", "bf16"]),
            default="auto",
            show_default=True,
            help="bf16 rounds the weights; auto does where the device has instructions for it.",
        ),
        click.option("--compile", is_flag=True, help="Compile the model first: takes minutes, and pays for many images."),
        click.option("--seed", type=SEED, default=0, show_default=True, help="The same seed and batch size give the same images."),
    ]

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command(short_help="Draw images with a trained model.")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_sampling_options(64, "How many images; with labels the next multiple of their number, a row for each.")
def sample(run_folder: Path, count: int, batch_size: int, **options) -> None:
    """Draw images with the model of RUN, into one picture and, if asked, into single files."""
    from autoregressive_diffusion_pytorch.image import draw_images

    run = _SamplingRun(run_folder, f"sample.{options['seed']}.png", **options)
    labels, columns = run.labels, None
    if labels:
        import torch

        columns = -(-count // len(labels))
        labels, count = torch.tensor(labels).repeat_interleave(columns), columns * len(labels)
    kwargs = dict(run.sample_kwargs, labels=labels, progress=run.is_main)
    run.save(draw_images(run.model, count, batch_size=batch_size, seed=run.seed, **kwargs), columns)


@click.command(short_help="Draw the rest of an image, below its first rows.")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("image_file", metavar="IMAGE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep-rows", type=click.IntRange(0), required=True, help="Rows of pixels to keep: a multiple of the patch size.")
@_sampling_options(8, "How many completions; of each label, if it draws labels.")
def complete(run_folder: Path, image_file: Path, keep_rows: int, count: int, batch_size: int, **options) -> None:
    """Draw the rest of IMAGE, scaled and cropped to the size of the model of RUN, below its first rows."""
    import torch

    from autoregressive_diffusion_pytorch.image_dataset import read_image

    run = _SamplingRun(run_folder, f"complete.{image_file.stem}.{options['seed']}.png", **options)
    model = run.model
    generator = torch.Generator(run.device).manual_seed(run.seed)
    try:
        image = read_image(image_file, model.image_size, model.channels).unsqueeze(0).to(run.device)
        completions = [
            model.complete(
                image,
                keep_rows,
                num_completions=min(batch_size, count - start),
                labels=label,
                generator=generator,
                progress=True,
                **run.sample_kwargs,
            ).cpu()
            for label in run.labels or [None]
            for start in range(0, count, batch_size)
        ]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    run.save(torch.cat(completions), count if run.labels else None)


class _SamplingRun:
    """A run that images are drawn with: its model, what to tell it, and where the images go. What is wrong is told in one line."""

    def __init__(
        self,
        run_folder: Path,
        default_output: str,
        *,
        output: Path | None,
        files: Path | None,
        checkpoint: int | None,
        names: tuple[str, ...],
        guidance: float | None,
        guidance_schedule: str | None,
        guidance_interval: tuple[float, float] | None,
        context_guidance: float | None,
        solver: str | None,
        steps: int | None,
        temperature: float | None,
        precision: str,
        compile: bool,
        seed: int,
    ):
        from autoregressive_diffusion_pytorch.checkpoints import newest_checkpoint
        from autoregressive_diffusion_pytorch.conditioning import GuidanceSchedule
        from autoregressive_diffusion_pytorch.modes import best_precision

        self.output = output or run_folder / "samples" / default_output
        self.files = files
        self.seed = seed
        if self.output.suffix.lower() != ".png":
            raise click.BadParameter(f"{self.output} must end in .png", param_hint="--output")
        config = read_config(run_folder)
        folder = checkpoint_of(run_folder, checkpoint, newest_checkpoint)
        self.model, accelerator = load_model(config, folder)
        self.device, self.is_main = accelerator.device, accelerator.is_main_process
        precision = best_precision() if precision == "auto" else precision
        self.classes = config["classes"]
        guided = dict(guidance_scale=guidance, guidance_schedule=guidance_schedule, guidance_interval=guidance_interval)
        self.sample_kwargs = dict(
            solver=solver,
            num_steps=steps,
            temperature=temperature,
            precision=precision,
            compile=compile,
            context_guidance=context_guidance,
            **guided,
        )
        own = self.model.generation
        try:
            given = [getattr(own, name) if value is None else value for name, value in guided.items()]
            unconditional = GuidanceSchedule(*given).is_unconditional
            self.labels = self._labels(names, unconditional)
            self.model.stream(labels=self.labels, **self.sample_kwargs)  # checks them
        except ValueError as error:
            raise click.ClickException(str(error)) from error

    def _labels(self, names: tuple[str, ...], unconditional: bool) -> list[int] | None:
        """The labels that are to be drawn, None for none."""
        if self.classes is None:
            if names:
                raise click.ClickException("the run has no labels: `ardiff train --labels` trains one that has")
            return None
        labels = [label_of(name, self.classes) for name in names]
        if unconditional:
            if labels:
                raise click.ClickException("--guidance 0 draws without labels: leave out --label")
            return None
        return labels or list(range(len(self.classes)))

    def save(self, images, columns: int | None) -> None:
        """Writes the grid, with labels a row of `columns` images for each, and the files; of several processes the main one."""
        if not self.is_main:
            return
        from autoregressive_diffusion_pytorch.image_grids import save_image_files, save_image_grid

        save_image_grid(images, self.output, columns, self.labels and [self.classes[label] for label in self.labels])
        click.echo(self.output)
        if self.files:
            save_image_files(images, self.files)
            click.echo(f"{self.files}: {len(images)} files")
