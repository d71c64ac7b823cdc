"""`ardiff train-autoencoder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..utils.files import atomic_write_text
from .options import (
    COUNT,
    FACTOR,
    OUTPUT,
    POSITIVE,
    SEED,
    add_options,
    flag,
    in_options,
    max_pixels_option,
    minutes_option,
    one_line_errors,
    option,
    precision_option,
    workers_option,
)
from .run import split
from .sources import absolute, dataset_of
from .training import check_apart

TRAINING = "training"  # the folder of checkpoints, grids and logs
OPTIONS_FILE = "options.json"
# for the digits and for a folder
DIGITS = dict(image_size=8, channels=1, factor=2, latent_channels=4, num_train_steps=2000)
FOLDER = dict(image_size=64, channels=3, factor=8, latent_channels=16, num_train_steps=20000)
# what --resume may change
LENGTH = ("num_train_steps", "max_minutes", "workers", "save_results_every", "checkpoint_every")


def _by_source(name: str) -> str:
    return f"[default: {DIGITS[name]} for digits, {FOLDER[name]} for a folder]"


AUTOENCODER_OPTIONS = add_options(
    option("--image-size", COUNT, f"Height and width of the images. {_by_source('image_size')}"),
    option("--channels", click.IntRange(1, 4), f"Of the images. {_by_source('channels')}"),
    option("--latent-channels", COUNT, f"Of the latents. {_by_source('latent_channels')}"),
    option(
        "--factor",
        click.Choice(["2", "4", "8", "16", "32"]),
        f"How many times smaller latents are than images, along each side. {_by_source('factor')}",
    ),
    option(
        "--width", COUNT, "Channels at the size of the image; deeper there are more.", default=16
    ),
    option(
        "--kl-weight",
        FACTOR,
        "Of the KL divergence: more makes latents smoother and pictures less sharp.",
        default=1e-6,
    ),
)
TRAINING_OPTIONS = add_options(
    option("--steps", COUNT, f"Training steps. {_by_source('num_train_steps')}", "num_train_steps"),
    minutes_option,
    option("--batch-size", COUNT, "Images per process and batch.", default=16),
    option("--learning-rate", POSITIVE, "Highest one.", default=1e-3),
    option(
        "--hold-out",
        click.FloatRange(0, 1, max_open=True),
        "Share of the images to keep for the validation loss, the same as of `ardiff train`.",
        default=0.0,
    ),
    option(
        "--flip/--no-flip",
        None,
        "Mirror images at random.",
        "augment_horizontal_flip",
        default=False,
    ),
    flag("--skip-damaged", "Leave out image files that cannot be read."),
    max_pixels_option,
    flag("--cache", "Keep images in memory once they are read.", "cache_in_memory"),
    precision_option,
    workers_option,
    option("--sample-every", COUNT, "Steps between grids.", "save_results_every", default=500),
    option("--checkpoint-every", COUNT, "Steps between checkpoints.", default=1000),
    option("--seed", SEED, "Seed of the weights, the order of images and the noise.", default=0),
)


@click.command(short_help="Train an autoencoder, for models of its latents.")
@click.argument("source", default="digits")
@option("--output", OUTPUT, "Folder of the autoencoder.", required=True)
@flag("--resume", "Go on from the newest checkpoint in --output, with the same options.")
@AUTOENCODER_OPTIONS
@TRAINING_OPTIONS
def train_autoencoder(source: str, output: Path, resume: bool, **options) -> None:
    """Train an AutoencoderKL of diffusers on SOURCE, a folder of images or the word "digits".

    The folder --output then holds config.json and diffusion_pytorch_model.safetensors, which
    `AutoencoderKL.from_pretrained` loads and `ardiff encode` takes; and in training/ checkpoints,
    and grids of images with what they are decoded to.
    """
    defaults = DIGITS if source == "digits" else FOLDER
    options |= {name: defaults[name] for name in defaults if options[name] is None}
    options["factor"] = int(options["factor"])
    source = absolute(source)
    check_apart(output, source, "--output")
    folder = output / TRAINING
    _check_options(folder, dict(source=source, **options), resume)
    trainer = _trainer(source, folder, resume, options)
    if trainer.is_main:
        text = json.dumps(dict(source=source, **options), indent=2)
        atomic_write_text(folder / OPTIONS_FILE, text)
        click.echo(f"{len(trainer.dataset):,} images; the training is in {folder}", err=True)
    _run(trainer)
    if trainer.validation.dataset is not None and trainer.is_main:
        count, ratio = len(trainer.validation.dataset), trainer.psnr()
        click.echo(f"{count:,} images held out: {ratio:.2f} dB (PSNR)", err=True)
    with one_line_errors((OSError,)):
        trainer.save_autoencoder(output)
    if trainer.is_main:
        click.echo(output)


def _run(trainer) -> None:
    """Trains; an error says how to go on."""
    from ..training.loop import TrainingStopped
    from ..training.together import one_line

    how = "the same command with --resume goes on from the last checkpoint"
    try:
        trainer()
    except (ValueError, FloatingPointError, OSError) as error:  # a damaged image is a ValueError
        raise click.ClickException(f"{in_options(one_line(error))}\n{how}") from error
    except TrainingStopped as stopped:
        if trainer.is_main:
            click.echo(how, err=True)
        raise SystemExit(stopped.code) from stopped


def _check_options(folder: Path, options: dict[str, Any], resume: bool) -> None:
    """Whether a training can start, or go on with these options, in a folder."""
    from ..utils.manifests import list_checkpoints

    checkpoints = list_checkpoints(folder / "checkpoints")
    if checkpoints and not resume:
        raise click.ClickException(
            f"{folder} already holds a training with {checkpoints[-1].name}: --resume goes on with "
            "it"
        )
    if not (resume and checkpoints):
        return
    with one_line_errors():
        before = json.loads((folder / OPTIONS_FILE).read_text())
    changed = [
        f"{name} = {before.get(name)!r}"
        for name, value in options.items()
        if name not in LENGTH and before.get(name) != value
    ]
    if changed:
        raise click.ClickException(
            f"{folder} was started with {', '.join(changed)}: --resume goes on with the same"
        )


def _trainer(source: str, folder: Path, resume: bool, options: dict[str, Any]):
    from ..training.autoencoder import AutoencoderTrainer, make_autoencoder
    from ..utils.modes import best_precision
    from ..utils.rng import seed_process

    def section(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    sizes = section("image_size", "channels")
    dataset = section("augment_horizontal_flip", "cache_in_memory", "skip_damaged", "max_pixels")
    config = dict(kind="images", source=source, hold_out=options["hold_out"], model=sizes)
    config |= dict(dataset=dataset | dict(labels_from_folders=False))
    precision = best_precision() if options["precision"] == "auto" else options["precision"]
    images, held_out = split(dataset_of(config)[0], config)
    seed_process(options["seed"], rank=0)  # for the weights
    with one_line_errors():
        return AutoencoderTrainer(
            make_autoencoder(**sizes, **section("latent_channels", "factor", "width")),
            dataset=images,
            validation_dataset=held_out,
            results_folder=folder / "samples",
            checkpoints_folder=folder / "checkpoints",
            logs_folder=folder / "logs",
            accelerate_kwargs=dict(mixed_precision=precision),
            dataloader_kwargs=dict(num_workers=options["workers"]),
            resume="auto" if resume else False,
            **section("kl_weight", "num_train_steps", "max_minutes", "batch_size"),
            **section("learning_rate", "save_results_every", "checkpoint_every", "seed"),
        )
