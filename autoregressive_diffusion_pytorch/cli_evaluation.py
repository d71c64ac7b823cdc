"""The command that says how good a trained model is: `ardiff evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count as count_up
from pathlib import Path

import click
from click.core import ParameterSource

from autoregressive_diffusion_pytorch.run_folder import (
    SEED,
    checkpoint_of,
    dataset_of,
    label_of,
    load_model,
    read_config,
    split,
    write_whole,
)

CURVE = (4, 8, 16, 32, 64)  # evaluations of the head's network


@click.command(short_help="Measure how good a model is on images that it was not trained on.")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("source", required=False)
@click.option("--checkpoint", type=click.IntRange(1), help="Step of the checkpoint to use. [default: the newest]")
@click.option("--images", type=click.IntRange(2), help="How many images of SOURCE to take, evenly spread. [default: all]")
@click.option(
    "--features",
    default="inception",
    show_default=True,
    help="Network for the distances: the standard Inception, a file of torch.export.save, or none for distances without one.",
)
@click.option(
    "--count", type=click.IntRange(0), help="Images to generate for the distances, 0 for none. [default: as many as of SOURCE]"
)
@click.option("--guidance", type=click.FloatRange(0), help="Of the generated images, as in sample.")
@click.option("--context-guidance", type=click.FloatRange(0), help="Of the generated images, as in sample.")
@click.option("--temperature", type=click.FloatRange(0), help="Of the generated images, as in sample.")
@click.option("--solver", help="Of the generated images, as in sample.")
@click.option("--steps", type=click.IntRange(1), help="Of that solver per token, as in sample.")
@click.option(
    "--curve",
    is_flag=True,
    help=f"Measure all again at {', '.join(map(str, CURVE))} evaluations of the network a token (bits from 4 on), and plot it.",
)
@click.option(
    "--divergence",
    type=click.Choice(["auto", "exact", "hutchinson"]),
    default="auto",
    show_default=True,
    help="Of the likelihood: exact takes as many derivatives as a token is wide, hutchinson estimates it; auto goes by the width.",
)
@click.option("--probes", type=click.IntRange(1), default=1, show_default=True, help="Derivatives of the estimate.")
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="Of the likelihood's solver."
)
@click.option(
    "--surprise", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Only map where this image is surprising."
)
@click.option("--label", "name", metavar="NAME", help="Class of that image, its name or number, if the model has labels.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of all noise.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File of the report, or of the map. [default: one in RUN/evaluation/]"
)
def evaluate(run_folder: Path, source: str | None, surprise: Path | None, name: str | None, **options) -> None:
    """Write a report on the model of RUN: bits per dimension of the images of SOURCE, a folder or the word "digits", and distances
    of as many generated images to them. With labels, SOURCE has a folder for each class.

    Without SOURCE it takes the images that RUN held out (`ardiff train --hold-out`).
    """
    config = read_config(run_folder)
    if surprise is not None:
        useful = ("checkpoint", "tolerance", "seed", "output")
        useless = [option for option in ("source", *options) if option not in useful and _is_given(option)]
        if useless:
            typed = ("SOURCE" if option == "source" else f"--{option.replace('_', '-')}" for option in useless)
            raise click.UsageError(f"--surprise has no use for {', '.join(typed)}")
        _map_surprise(run_folder, config, surprise, name, **options)
    elif name is not None:
        raise click.UsageError("--label is for --surprise: SOURCE has a folder for each class")
    else:
        _report(run_folder, config, source, **options)


def _report(
    run_folder: Path,
    config: dict,
    source: str | None,
    *,
    checkpoint: int | None,
    images: int | None,
    features: str,
    count: int | None,
    guidance: float | None,
    context_guidance: float | None,
    temperature: float | None,
    solver: str | None,
    steps: int | None,
    curve: bool,
    divergence: str,
    probes: int,
    tolerance: float,
    batch_size: int,
    seed: int,
    output: Path | None,
) -> None:
    from autoregressive_diffusion_pytorch.evaluation import evaluate
    from autoregressive_diffusion_pytorch.evaluation_plots import need_matplotlib, plot_curve

    folder, output = _checkpoint_and_output(run_folder, checkpoint, output, "report", ".json")
    try:
        # what is wrong is told before hours of work
        if curve:
            need_matplotlib()
        output.parent.mkdir(parents=True, exist_ok=True)
        dataset = _images(config, source, images)
        model, accelerator = load_model(config, folder)
        # the report tells the model's own where nothing was asked for
        own = model.generation
        steps, solver = model.model.head.steps_and_solver(*own.steps_and_solver(steps, solver, model.model.head.solver))
        sample_kwargs = dict(
            guidance_scale=own.guidance_scale if guidance is None else guidance,
            context_guidance=own.context_guidance if context_guidance is None else context_guidance,
            guidance_schedule=own.guidance_schedule,
            guidance_interval=own.guidance_interval,
            temperature=own.temperature if temperature is None else temperature,
            solver=solver,
            num_steps=steps,
        )
        report = evaluate(
            model,
            dataset,
            features=_feature_network(features, model, accelerator.device),
            count=count,
            evaluations=CURVE if curve else (),
            batch_size=batch_size,
            seed=seed,
            progress=accelerator.is_main_process,
            sample_kwargs=sample_kwargs,
            solver_kwargs=dict(divergence=divergence, num_probes=probes, rtol=tolerance, atol=tolerance),
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
    if not accelerator.is_main_process:
        return
    sampling = dict(features=features, **sample_kwargs)
    asked = dict(checkpoint=folder.name, source=source or "held out", seed=seed, batch_size=batch_size)
    report = asked | dict(sampling=sampling if "generated" in report else None) | report
    write_whole(output, json.dumps(report, indent=2, allow_nan=False))
    for line in _summary(report):
        click.echo(line)
    click.echo(output)
    if curve:
        plot_curve(report, output.with_suffix(".png"))
        click.echo(output.with_suffix(".png"))


def _map_surprise(
    run_folder: Path,
    config: dict,
    file: Path,
    name: str | None,
    *,
    checkpoint: int | None,
    tolerance: float,
    seed: int,
    output: Path | None,
    **_,
) -> None:
    from autoregressive_diffusion_pytorch.evaluation import surprise
    from autoregressive_diffusion_pytorch.evaluation_plots import need_matplotlib, plot_surprise
    from autoregressive_diffusion_pytorch.image_dataset import read_image

    folder, output = _checkpoint_and_output(run_folder, checkpoint, output, f"surprise.{file.stem}", ".png")
    classes = config["classes"]
    if (classes is None) != (name is None):
        known = "the run has no labels" if classes is None else f"the run has labels: name one of {', '.join(classes)}"
        raise click.BadParameter(known, param_hint="--label")
    label = None if name is None else label_of(name, classes)
    try:
        need_matplotlib()
        output.parent.mkdir(parents=True, exist_ok=True)
        model, accelerator = load_model(config, folder)
        image = read_image(file, model.image_size, model.channels)
        nats = surprise(model, image, label, seed, rtol=tolerance, atol=tolerance)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
    if accelerator.is_main_process:
        plot_surprise(image, nats, output)
        click.echo(output)


def _checkpoint_and_output(run_folder: Path, step: int | None, output: Path | None, name: str, ending: str) -> tuple[Path, Path]:
    from autoregressive_diffusion_pytorch.checkpoints import newest_checkpoint, step_of

    folder = checkpoint_of(run_folder, step, newest_checkpoint)
    if output is None:  # beside earlier ones
        names = (f"{name}.{step_of(folder)}{'' if i == 1 else f'-{i}'}{ending}" for i in count_up(1))
        output = next(file for file in (run_folder / "evaluation" / name for name in names) if not file.exists())
    if output.suffix.lower() != ending:
        raise click.BadParameter(f"{output} must end in {ending}", param_hint="--output")
    return folder, output


def _images(config: dict, source: str | None, count: int | None):
    """The images to measure on, those held out by default; labelled as the run labels them."""
    from torch.utils.data import Subset

    source_of_run = source is None
    source = config["source"] if source_of_run else source
    dataset, classes = dataset_of(config | dict(dataset=config["dataset"] | dict(augment_horizontal_flip=False)), source)
    unknown = [name for name in classes or [] if name not in config["classes"]]
    if unknown:
        raise click.ClickException(f"{source} has classes that the run does not know: {', '.join(unknown)}")
    if classes is not None and source != "digits":
        dataset.class_to_idx = {name: i for i, name in enumerate(config["classes"])}
    if source_of_run:
        _, dataset = split(dataset, config)
        if dataset is None:
            raise click.ClickException("the run held out no images: name a folder of images that it was not trained on")
    if count is None or count >= len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // count for i in range(count)])


@click.command(short_help="Find the settings that draw a model's best images.")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("source", metavar="[IMAGES]", required=False)
@click.option("--checkpoint", type=click.IntRange(1), help="Step of the checkpoint to use. [default: the newest]")
@click.option("--images", type=click.IntRange(2), help="How many of IMAGES to take, evenly spread. [default: 2000 at most]")
@click.option("--count", type=click.IntRange(1), help="Images to draw with each of the settings. [default: 500 to 2000]")
@click.option(
    "--features",
    default="none",
    show_default=True,
    help="Network whose Fréchet distance decides, with recall beside it, as in evaluate. Without one the sliced Wasserstein "
    "distance does.",
)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True, help="Images drawn at a time.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of all noise.")
@click.option("--dry-run", is_flag=True, help="Print the table, but write no settings.")
def tune(
    run_folder: Path,
    source: str | None,
    checkpoint: int | None,
    images: int | None,
    count: int | None,
    features: str,
    batch_size: int,
    seed: int,
    dry_run: bool,
) -> None:
    """Draw images of RUN with several settings, compare them with IMAGES, a folder or the word "digits", and write the best
    settings into RUN/generation.json, from where sample, complete, evaluate and export take them.

    Tried are guidance by context and by label, temperature, and steps of the solver. Without IMAGES it takes those that RUN held
    out (`ardiff train --hold-out`), or those that it was trained on, and says so.
    """
    from autoregressive_diffusion_pytorch.evaluation_plots import plot_tuning
    from autoregressive_diffusion_pytorch.modes import best_precision
    from autoregressive_diffusion_pytorch.tuning import tune

    config = read_config(run_folder)
    folder, output = _checkpoint_and_output(run_folder, checkpoint, None, "tune", ".json")
    if source is None and config["hold_out"] == 0:
        click.echo("no image was held out: compared with those that the run was trained on", err=True)
        source = config["source"]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        dataset = _images(config, source, images or 2000)
        model, accelerator = load_model(config, folder)
        tuning = tune(
            model,
            dataset,
            count=count,
            features=_feature_network(features, model, accelerator.device),
            batch_size=batch_size,
            seed=seed,
            progress=accelerator.is_main_process,
            precision=best_precision(),
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    if not accelerator.is_main_process:
        return
    report = dict(checkpoint=folder.name, source=source or "held out", images=len(dataset), seed=seed) | asdict(tuning)
    for line in _table([*tuning.rows, tuning.floor]):
        click.echo(line)
    write_whole(output, json.dumps(report, indent=2))
    click.echo(output)
    try:
        plot_tuning(report, output.with_suffix(".png"))
        click.echo(output.with_suffix(".png"))
    except ModuleNotFoundError as error:
        click.echo(error, err=True)
    chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in tuning.settings.given().items())
    click.echo(f"best: {chosen or 'as learned'}")
    if not dry_run:
        click.echo(tuning.settings.save(run_folder))


def _table(rows: list[dict]) -> list[str]:
    """Rows of numbers under their names; the last one, the distance between two halves of the real images, as the floor."""
    names = [name for name in rows[0] if not name.endswith("_std")]
    cells = [[name.replace("_", " ") for name in names]]
    cells += [["" if row.get(name) is None else f"{row[name]:.4g}" for name in names] for row in rows]
    cells[-1][0] = "floor"
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _feature_network(features: str, model, device):
    import torch

    from autoregressive_diffusion_pytorch.evaluation import Inception, load_feature_network

    if features == "none":
        return None
    if features != "inception":
        network = load_feature_network(features).to(device)
        for count in (2, 3):
            try:
                network(torch.zeros(count, 3, *model.image_size, device=device))
            except (RuntimeError, AssertionError) as error:
                height, width = model.image_size
                raise click.ClickException(f"{features} does not take ({count} 3 {height} {width}) images: {error}") from error
        return network
    try:
        return Inception().to(device)
    except OSError as error:
        raise click.ClickException(
            f"the weights of Inception cannot be downloaded: {error}\n--features takes another network, or none"
        ) from error


def _summary(report: dict) -> list[str]:
    bits = report["bits_per_dim"]
    lines = [f"bits per dimension   {bits['mean']:.4f} ± {bits['standard_error']:.4f}  ({report['images']} images)"]
    distances = dict(report.get("generated", {}))
    count, evaluations = distances.pop("count", None), distances.pop("evaluations", None)
    lines += [f"{name.replace('_', ' '):20} {value:.4f}" for name, value in distances.items() if not name.endswith("_std")]
    return lines + ([f"of {count} generated images, {evaluations} evaluations a token"] if count else [])


def _is_given(name: str) -> bool:
    """Whether an option of this command was typed."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT
