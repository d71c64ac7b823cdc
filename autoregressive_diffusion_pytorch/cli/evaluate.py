"""`ardiff evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..utils.files import atomic_write_text, check_file
from .measuring import checkpoint_and_output, data_of, feature_network
from .options import (
    COUNT,
    FACTOR,
    FILE,
    OUTPUT,
    POSITIVE,
    checkpoint_option,
    flag,
    one_line_errors,
    option,
    run_argument,
    seed_option,
)
from .run import label_of, load_model, read_config

CURVE = (4, 8, 16, 32, 64)  # NFE per token
SAMPLING = ("guidance_scale", "context_guidance", "temperature", "solver", "num_steps")
LIKELIHOOD = ("divergence", "num_probes", "tolerance")
# of which the report tells the model's own
SETTINGS = ("guidance_schedule", "guidance_interval", "guidance_target", "num_iterations")


@click.command(short_help="Measure how good a model is on images that it was not trained on.")
@run_argument
@click.argument("source", required=False)
@checkpoint_option
@option("--images", click.IntRange(2), "Images of SOURCE to take, evenly spread. [default: all]")
@option(
    "--features",
    None,
    "Network for the distances: the standard Inception, a file of torch.export.save (no code from "
    "it is run), or none for distances without one.",
    default="inception",
)
@option(
    "--count",
    click.IntRange(0),
    "Images to generate for the distances, 0 for none. [default: as many as of SOURCE]",
)
@option("--guidance", FACTOR, "Of the generated images, as in sample.", "guidance_scale")
@option("--context-guidance", FACTOR, "Of the generated images, as in sample.")
@option("--temperature", FACTOR, "Of the generated images, as in sample.")
@option("--solver", None, "Of the generated images, as in sample.")
@option("--steps", COUNT, "Of that solver per token, as in sample.", "num_steps")
@flag(
    "--curve",
    f"Measure all again at {', '.join(map(str, CURVE))} function evaluations per token (bits from "
    "4 on), and plot it.",
)
@option(
    "--divergence",
    click.Choice(["auto", "exact", "hutchinson"]),
    "Of the likelihood: exact takes as many derivatives as a token is wide, hutchinson estimates "
    "it; auto goes by the width. [default: auto]",
)
@option("--probes", COUNT, "Derivatives of the estimate. [default: 1]", "num_probes")
@option("--tolerance", POSITIVE, "Of the likelihood's solver. [default: 0.001]")
@option("--surprise", FILE, "Only map where this image is surprising.")
@option(
    "--label",
    None,
    "Class of that image, its name or number, if the model has labels.",
    "name",
    metavar="NAME",
)
@option("--batch-size", COUNT, "Images at a time.", default=64)
@seed_option
@option("--output", OUTPUT, "File of the report, or of the map. [default: one in RUN/evaluation/]")
def evaluate(
    run_folder: Path, source: str | None, surprise: Path | None, name: str | None, **options
) -> None:
    """Write a report on the model of RUN: bits per dimension, and distances of generated images.

    Both are of the images of SOURCE, a folder or the word "digits"; with labels, a folder with one
    folder per class.

    Without SOURCE it takes the images that RUN held out (`ardiff train --hold-out`).

    Of a RUN on sequences: nats per token, and statistics of drawn sequences beside those of SOURCE,
    a folder of sequences or the word "speech-test".
    """
    config = read_config(run_folder)
    if config["kind"] == "sequences":
        _report_on_sequences(run_folder, config, source, options)
    elif surprise is not None:
        _check_useful("--surprise", "checkpoint", "tolerance", "seed", "output", "surprise", "name")
        _map_surprise(run_folder, config, surprise, name, options)
    elif name is not None:
        raise click.UsageError("--label is for --surprise: SOURCE has a folder for each class")
    else:
        _report(run_folder, config, source, **options)


def _check_useful(what: str, *useful: str) -> None:
    """Whether all options that were typed are useful with --surprise, or a run on sequences."""
    context = click.get_current_context()
    typed = [
        "SOURCE" if parameter.name == "source" else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in (*useful, "run_folder", "head")
        and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]
    if typed:
        raise click.UsageError(f"{what} has no use for {', '.join(typed)}")


def _report(
    run_folder: Path,
    config: dict[str, Any],
    source: str | None,
    *,
    checkpoint: int | None,
    images: int | None,
    features: str,
    count: int | None,
    curve: bool,
    batch_size: int,
    seed: int,
    output: Path | None,
    **options,
) -> None:
    from ..evaluation.plots import need_matplotlib, plot_curve
    from ..evaluation.report import evaluate

    folder, output = checkpoint_and_output(run_folder, checkpoint, output, "report", ".json")
    with one_line_errors():
        # what is wrong is told before hours of work
        if curve:
            need_matplotlib()
            check_file("--curve", output.with_suffix(".png"))
        dataset = data_of(config, source, images)
        model, accelerator = load_model(config, folder)
        given = {name: options[name] for name in SAMPLING}
        # the report tells the model's own where nothing was asked for
        settings = model.generation.with_given(given, model.head)
        sample_kwargs = {
            name: settings.get(name) for name in ("guidance_scale", "context_guidance")
        }
        sample_kwargs |= {name: settings.get(name) for name in SETTINGS}
        sample_kwargs |= dict(temperature=settings["temperature"])
        sample_kwargs |= model.head.sampling_settings(**settings)
        network = None if count == 0 else feature_network(features, model, accelerator.device)
        report = evaluate(
            model,
            dataset,
            features=network,
            count=count,
            evaluations=CURVE if curve else (),
            batch_size=batch_size,
            seed=seed,
            progress=accelerator.is_main_process,
            sample_kwargs=sample_kwargs,
            solver_kwargs=_solver_kwargs(options),
        )
    if not accelerator.is_main_process:
        return
    sampling = dict(features=features, **sample_kwargs) if "generated" in report else None
    asked = dict(checkpoint=folder.name, source=source or "held out")
    asked |= dict(seed=seed, batch_size=batch_size, sampling=sampling)
    report = asked | report
    with one_line_errors((OSError,)):
        atomic_write_text(output, json.dumps(report, indent=2, allow_nan=False))
    for line in _summary(report):
        click.echo(line)
    click.echo(output)
    if curve:
        plot_curve(report, output.with_suffix(".png"))
        click.echo(output.with_suffix(".png"))


def _report_on_sequences(
    run_folder: Path, config: dict[str, Any], source: str | None, options: dict[str, Any]
) -> None:
    from .sequences import report_on_sequences

    names = ("checkpoint", "count", "batch_size", "seed", "output")
    asked = {name: options[name] for name in SAMPLING if options[name] is not None}
    _check_useful("a run on sequences", "source", *names, *SAMPLING, *LIKELIHOOD)
    report_on_sequences(
        run_folder,
        config,
        source,
        **{name: options[name] for name in names},
        sample_kwargs=asked,
        solver_kwargs=_solver_kwargs(options),
    )


def _solver_kwargs(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `log_prob` that were asked for."""
    kwargs = {name: options[name] for name in ("divergence", "num_probes")}
    kwargs |= dict(rtol=options["tolerance"], atol=options["tolerance"])
    return {name: value for name, value in kwargs.items() if value is not None}


def _map_surprise(
    run_folder: Path, config: dict[str, Any], file: Path, name: str | None, options: dict[str, Any]
) -> None:
    from ..data.image_files import read_image
    from ..evaluation.plots import need_matplotlib, plot_surprise
    from ..evaluation.report import surprise

    output = (options["output"], f"surprise.{file.stem}", ".png")
    folder, output = checkpoint_and_output(run_folder, options["checkpoint"], *output)
    classes = config["classes"]
    if (classes is None) != (name is None):
        known = "the run has no labels"
        if classes is not None:
            known = f"the run has labels: name one of {', '.join(classes)}"
        raise click.BadParameter(known, param_hint="--label")
    label = None if name is None else label_of(name, classes)
    with one_line_errors():
        need_matplotlib()
        model, accelerator = load_model(config, folder)
        image = read_image(file, model.image_size, model.channels)
        nats = surprise(model, image, label, options["seed"], **_solver_kwargs(options))
    if accelerator.is_main_process:
        plot_surprise(image, nats, output)
        click.echo(output)


def _summary(report: dict[str, Any]) -> list[str]:
    lines = []
    names = dict(bits_per_dim="bits per dimension", nats_per_dim="nats per dim. of latents")
    for key in names.keys() & report.keys():
        found = report[key]
        figures = f"{found['mean']:.4f} ± {found['standard_error']:.4f}"
        told = f"{report['images']} images; {found['density']}"
        lines = [f"{names[key]:20} {figures}  ({told})"]
    distances = dict(report.get("generated", {}))
    count, evaluations = distances.pop("count", None), distances.pop("evaluations", None)
    lines += [
        f"{name.replace('_', ' '):20} {value:.4f}"
        for name, value in distances.items()
        if not name.endswith("_std")
    ]
    if count:
        lines.append(f"of {count} generated images, {evaluations} evaluations per token")
    return lines
