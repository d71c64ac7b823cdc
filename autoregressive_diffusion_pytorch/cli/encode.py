"""`ardiff encode`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ..utils.text import counted
from .options import (
    COUNT,
    OUTPUT,
    add_options,
    flag,
    in_options,
    max_pixels_option,
    one_line_errors,
    option,
    workers_option,
)
from .sources import absolute, dataset_of
from .training import check_apart

OPTIONS = add_options(
    option(
        "--autoencoder", None, "Folder or Hugging Face name of one of diffusers.", required=True
    ),
    option("--output", OUTPUT, "Folder of the cache.", required=True),
    option("--image-size", COUNT, "Height and width of the images. [default: the autoencoder's]"),
    option(
        "--labels/--no-labels",
        None,
        "Keep labels: one class per folder in SOURCE, or the digits 0 to 9.",
        "labels_from_folders",
        default=False,
    ),
    option(
        "--flip",
        click.Choice(["none", "both"]),
        "Encode each image mirrored too: a training then draws one of the two.",
        default="none",
    ),
    flag(
        "--skip-damaged", "Leave out image files that cannot be read: by default it stops at one."
    ),
    max_pixels_option,
    option("--batch-size", COUNT, "Images encoded at a time.", default=32),
    option("--shard-size", COUNT, "Images in a file.", default=4096),
    workers_option,
)


@click.command(short_help="Encode images once, to train on their latents.")
@click.argument("source")
@OPTIONS
def encode(
    source: str,
    autoencoder: str,
    output: Path,
    image_size: int | None,
    labels_from_folders: bool,
    flip: str,
    skip_damaged: bool,
    max_pixels: int,
    batch_size: int,
    shard_size: int,
    workers: int,
) -> None:
    """Encode the images of SOURCE, a folder or the word "digits", with an autoencoder, and write
    mean and std of their latents into the folder --output, which `ardiff train` takes.

    Stopped at any moment and called again, it goes on, and ends with the same files.
    """
    from accelerate import PartialState

    from ..data.image_files import DamagedImageError
    from ..data.latents import write_cache
    from ..models.latents import FrozenAutoencoder

    source = absolute(source)
    check_apart(output, source, "--output")
    if Path(autoencoder).is_dir():
        autoencoder = str(Path(autoencoder).resolve())
    device = PartialState().device
    with one_line_errors():
        model = FrozenAutoencoder(autoencoder)
        size = image_size or model.config.get("sample_size")
        if size is None:
            raise click.UsageError("the autoencoder names no size: --image-size is needed")
        shape = model.latent_shape((size, size) if isinstance(size, int) else tuple(size))
        fingerprint = model.fingerprint()
    images = dict(labels_from_folders=labels_from_folders, skip_damaged=skip_damaged)
    images |= dict(max_pixels=max_pixels)
    config = dict(kind="images", source=source, dataset=images)
    config |= dict(model=dict(image_size=size, channels=model.channels))
    dataset, classes = dataset_of(config)
    facts = dict(autoencoder=autoencoder, autoencoder_sha256=fingerprint, source=source)
    facts |= dict(image_size=size, channels=model.channels, latent_shape=shape, classes=classes)
    started = time.monotonic()
    try:
        count = write_cache(
            output,
            dataset,
            lambda images: model.encode(images.to(device)),
            facts | dict(dataset=images),
            flip=flip,
            batch_size=batch_size,
            shard_size=shard_size,
            num_workers=workers,
            progress=True,
        )
    except DamagedImageError as error:
        raise click.ClickException(f"{error}\n--skip-damaged leaves such files out") from error
    except (ValueError, OSError) as error:
        raise click.ClickException(in_options(str(error))) from error
    seconds = time.monotonic() - started
    speed = f", {count / seconds:.0f} images/s" if count else ""
    click.echo(f"{counted(count, 'image', 'images')} encoded{speed}", err=True)
    click.echo(output)
