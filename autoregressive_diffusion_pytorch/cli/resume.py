"""`ardiff resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    COUNT,
    FACTOR,
    POSITIVE,
    add_options,
    in_options,
    option,
    run_argument,
    serve_option,
)
from .run import listed, read_config, write_config
from .sources import absolute, check_source, dataset_of
from .training import build_trainer, check_apart, run_trainer


def switch(name: str, help: str, argument: str | None = None):
    """An option that is on, off, or as before."""
    return option(f"--{name}/--no-{name}", click.BOOL, help, argument, default=None)


# options of `train` that can change, by the section of the configuration; None is as before
TRAINER_OPTIONS = add_options(
    option("--steps", COUNT, "Train up to this step.", "num_train_steps"),
    option("--epochs", POSITIVE, "Train until each image was seen so often.", "num_epochs"),
    option("--batch-size", COUNT, "Images per process and batch."),
    option("--learning-rate", POSITIVE, "Highest one."),
    option("--lr-schedule", click.Choice(["constant", "cosine"]), "Constant or falling."),
    option("--weight-decay", FACTOR, "Of the matrices."),
    option("--max-grad-norm", POSITIVE, "Clip gradients to this norm."),
    option("--nonfinite", click.Choice(["stop", "skip"]), "At a step that is not finite."),
    switch("gradient-checkpointing", "Less memory, slower."),
    option("--sample-every", COUNT, "Steps between grids of samples.", "save_results_every"),
    option("--checkpoint-every", COUNT, "Steps between checkpoints."),
    option("--keep-last", COUNT, "Newest checkpoints to keep, and the best."),
    option("--log-with", None, "Where to log."),
)
DATASET_OPTIONS = add_options(
    switch("flip", "Mirror images at random.", "augment_horizontal_flip"),
    switch("skip-damaged", "Leave out files that cannot be read."),
    option("--max-pixels", COUNT, "The largest image to read."),
    switch("cache", "Keep images in memory.", "cache_in_memory"),
)
RUN_OPTIONS = add_options(
    option(
        "--hold-out",
        click.FloatRange(0, 1, max_open=True),
        "Hold out this share anew, after images were added or removed: of those that were trained "
        "on, too.",
    ),
    option("--accumulate", COUNT, "Batches per step."),
    option("--precision", click.Choice(["auto", "no", "bf16", "fp16"]), "Mixed precision."),
    switch("compile", "Compile the model first."),
    option("--workers", click.IntRange(0), "Processes that read images in advance."),
)
SECTIONS = dict(trainer=TRAINER_OPTIONS, dataset=DATASET_OPTIONS)


def _names(options) -> list[str]:
    """The names of the arguments that a decorator's options give."""
    return [parameter.name for parameter in click.command()(options(lambda **_: None)).params]


@click.command(short_help="Go on with a training run.")
@run_argument
@option("--source", None, "Where the images are now, if they were moved.")
@option("--minutes", POSITIVE, "End after this time, even if steps are left.")
@serve_option
@TRAINER_OPTIONS
@DATASET_OPTIONS
@RUN_OPTIONS
def resume(run_folder: Path, source: str | None, minutes: float | None, **changes) -> None:
    """Go on with RUN from its newest whole checkpoint, as if it had never stopped; without one,
    from the start.

    An option that is given counts from now on; what is not given is as before, but for --minutes.
    """
    config = read_config(run_folder)
    changes = {name: value for name, value in changes.items() if value is not None}
    if source is not None:
        config["source"] = absolute(source)
    _change(config, changes)
    config["trainer"]["max_minutes"] = minutes
    check_apart(run_folder, config["source"])
    check_source(config)
    dataset, classes = dataset_of(config)
    if classes != config["classes"]:
        raise click.ClickException(
            f"{config['source']} has other classes than when the run was started: "
            f"{listed(classes)} instead of {listed(config['classes'])}"
        )
    trainer = build_trainer(config, dataset, run_folder, resume="auto")
    if config["num_images"] is None:
        config["num_images"] = len(dataset)
    config["used_precision"] = trainer.accelerator.mixed_precision
    if trainer.is_main:
        write_config(config, run_folder)
    step, last = trainer.step, trainer.num_train_steps
    if step > last or (step == last and trainer.samples.path(step).exists()):
        raise click.ClickException(
            f"{run_folder} is at step {step} of {last}: --steps asks for more"
        )
    run_trainer(trainer, run_folder)


def _change(config: dict[str, Any], changes: dict[str, Any]) -> None:
    """Puts options into the configuration."""
    if "num_train_steps" in changes and "num_epochs" in changes:
        raise click.UsageError("--steps and --epochs exclude each other")
    if "num_train_steps" in changes or "num_epochs" in changes:
        config["trainer"] |= dict(num_train_steps=None, num_epochs=None)
    elif config["trainer"].get("num_epochs") and {"batch_size", "accumulate"} & changes.keys():
        raise click.UsageError(
            "--batch-size and --accumulate change the steps of --epochs: give --steps or --epochs"
        )
    if "weight_decay" in changes:
        config["trainer"]["adam_kwargs"] = dict(weight_decay=changes.pop("weight_decay"))
    if "hold_out" in changes:
        config["num_images"] = None
    sections = {name: section for section in SECTIONS for name in _names(SECTIONS[section])}
    for name, value in changes.items():
        if sections.get(name) == "dataset" and config["kind"] != "images":
            message = f"{name} is of images, the run is on {config['kind']}"
            raise click.UsageError(in_options(message))
        section = config[sections[name]] if name in sections else config
        section[name] = value
