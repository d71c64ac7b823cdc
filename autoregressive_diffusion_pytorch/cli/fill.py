"""`ardiff fill`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE, option, run_argument
from .run import check_kind
from .sampling import SamplingRun, sampling_options

if TYPE_CHECKING:
    from torch import Tensor

Pixels = tuple[int, int, int, int]


class FourNumbers(click.ParamType):
    """Four whole numbers of pixels, with commas between them."""

    name = "pixels"

    def convert(self, value, param, ctx):
        numbers = value.split(",")
        if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
            self.fail(f"{value!r} is not {param.metavar}, four whole numbers of pixels", param, ctx)
        return tuple(map(int, numbers))


@click.command(short_help="Draw a region of an image anew, or what lies around it.")
@run_argument
@click.argument("image_file", metavar="IMAGE", type=FILE)
@option("--mask", FILE, "Image that is white where to draw, black where to keep.", "mask_file")
@option(
    "--box",
    FourNumbers(),
    "Rectangle to draw: left, top, width, height, in pixels of the run's images.",
    metavar="X,Y,W,H",
)
@option(
    "--extend",
    FourNumbers(),
    "Pixels to draw around the image: left, top, right, bottom, in whole patches.",
    metavar="L,T,R,B",
)
@sampling_options(8, "Completions; of each label, if it draws labels.")
def fill(
    run_folder: Path,
    image_file: Path,
    mask_file: Path | None,
    box: Pixels | None,
    extend: Pixels | None,
    count: int,
    batch_size: int,
    **options,
) -> None:
    """Draw a region of IMAGE anew, which --mask or --box marks, or what lies around it (--extend),
    with a RUN that was trained with --order random or masked. IMAGE and mask are scaled and cropped
    to the model of RUN.
    """
    if [mask_file, box, extend].count(None) != 2:
        raise click.UsageError("one of --mask, --box and --extend is needed, to mark the region")
    output = f"fill.{image_file.stem}.{options['seed']}"
    run = SamplingRun(run_folder, output, **options)
    check_kind(run.config, "fill", "images", "latents")
    if not run.model.model.draws_any_order:
        raise click.ClickException(
            f"{run_folder} draws in raster order: `ardiff complete` draws what lies below some "
            "rows, and `ardiff train --order masked` trains a run that fills any region"
        )
    image = run.read(image_file)
    if mask_file is not None:
        mask = run.read(mask_file, channels=1)[0, 0] > 0.5
    elif box is not None:
        mask = _mask_of_box(image, box)
    else:
        image, mask = _extended(image, extend, run.model.tokenizer.cell)
    run.save_completions(run.model.fill, (image, mask), count, batch_size)


def _mask_of_box(image: Tensor, box: Pixels) -> Tensor:
    """True in the rectangle."""
    left, top, width, height = box
    rows, columns = image.shape[-2:]
    if not (width and height) or left + width > columns or top + height > rows:
        raise click.BadParameter(
            f"{left},{top},{width},{height} does not lie in {columns} x {rows} pixels",
            param_hint="--box",
        )
    mask = image.new_zeros(rows, columns).bool()
    mask[top : top + height, left : left + width] = True
    return mask


def _extended(image: Tensor, extend: Pixels, cell: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The image in a larger one, and True around it."""
    from torch.nn.functional import pad

    left, top, right, bottom = extend
    height, width = cell
    if not any(extend) or left % width or right % width or top % height or bottom % height:
        given = ",".join(map(str, extend))
        raise click.BadParameter(
            f"{given} are no whole patches, of {width} x {height} pixels", param_hint="--extend"
        )
    sides = (left, right, top, bottom)
    return pad(image, sides), pad(image.new_zeros(image.shape[-2:]), sides, value=1).bool()
