"""Pictures of what `quality.py` trained: samples by minute of training, and the training images
nearest to samples.

    python benchmarks/gallery.py progress runs/comparison images/progress.png
    python benchmarks/gallery.py nearest runs/comparison images/nearest.png --only 'this, flow'

`progress` draws a row for each configuration and a block of samples for each mark: the first ones,
not chosen ones.

`nearest` draws samples above the training images that they are nearest to, mirrored ones included,
by the mean square difference of pixels. It prints the median of that, beside the median from a
training image to the nearest other one: copies would lie nearer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from quality_worker import as_file_name, marks_of, newest_mark

PADDING = 2  # pixels between images
MARGIN = 12  # around blocks
FONT_SIZE = 18


def block(images: np.ndarray, columns: int, scale: int) -> Image.Image:
    """Images (n h w 3) side by side, in rows, enlarged."""
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = images.shape[1:3]
    rows = len(images) // columns
    picture = Image.new(
        "RGB", (columns * (width + PADDING) - PADDING, rows * (height + PADDING) - PADDING), "white"
    )
    for i, image in enumerate(images[: rows * columns]):
        picture.paste(
            Image.fromarray(image),
            (i % columns * (width + PADDING), i // columns * (height + PADDING)),
        )
    return picture


def table(blocks: list[list[Image.Image]], columns: list[str], rows: list[str]) -> Image.Image:
    """Blocks of one size, with names above the columns and beside the rows."""
    font = ImageFont.load_default(size=FONT_SIZE)
    width, height = (
        max(size) + MARGIN
        for size in zip(*(part.size for row in blocks for part in row), strict=True)
    )
    left = round(max(map(font.getlength, rows), default=0)) + 2 * MARGIN if rows else MARGIN
    top = FONT_SIZE + 2 * MARGIN if columns else MARGIN
    picture = Image.new("RGB", (left + width * len(blocks[0]), top + height * len(blocks)), "white")
    draw = ImageDraw.Draw(picture)
    for j, name in enumerate(columns):
        draw.text(
            (left + (j + 0.5) * width - MARGIN / 2, top / 2),
            name,
            fill="black",
            font=font,
            anchor="mm",
        )
    for i, row in enumerate(blocks):
        if rows:
            draw.text(
                (MARGIN, top + (i + 0.5) * height - MARGIN / 2),
                rows[i],
                fill="black",
                font=font,
                anchor="lm",
            )
        for j, part in enumerate(row):
            picture.paste(part, (left + j * width, top + i * height))
    return picture


def folders_of(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of configurations, by name."""
    named = {
        json.loads(file.read_text())["name"]: file.parent
        for file in sorted(args.folder.glob("*/configuration.json"))
    }
    return {name: named[name] for name in args.only or named}


def samples_of(folder: Path, minutes: float, sampling: str | None) -> Path:
    """The file of what a configuration drew at a mark, by the name of the sampling or with the
    first of its samplings."""
    samplings = json.loads((folder / "configuration.json").read_text())["samplings"]
    sampling = sampling if sampling in samplings else next(iter(samplings))
    return folder / f"{as_file_name(f'samples {sampling}'.strip())}.{minutes:g}.npy"


def draw_progress(args: argparse.Namespace) -> None:
    folders = folders_of(args)
    minutes = args.minutes or sorted(marks_of(next(iter(folders.values()))))
    count = args.columns**2
    blocks = [
        [
            block(
                np.load(samples_of(folder, minute, args.sampling))[:count], args.columns, args.scale
            )
            for minute in minutes
        ]
        for folder in folders.values()
    ]
    columns = [f"{minute:g} minute{'s' * (minute != 1)}" for minute in minutes]
    table(blocks, columns, list(folders)).save(args.picture, optimize=True)


def draw_nearest(args: argparse.Namespace) -> None:
    blocks, rows = [], []
    for name, folder in folders_of(args).items():
        samples = np.load(samples_of(folder, newest_mark(folder), args.sampling))
        real = np.load(args.folder / f"real.{samples.shape[1]}.npy")
        mirrored = np.concatenate((real, real[:, :, ::-1]))
        distances, nearest = nearest_of(samples, mirrored)
        between, _ = nearest_of(real, mirrored, are_first=True)
        print(
            f"{name}: median distance to the nearest real image {np.median(distances):.4f} "
            f"(of {len(samples)} samples at least {distances.min():.4f}); "
            f"from one of those to the nearest other {np.median(between):.4f} (at "
            f"least {between.min():.4f})"
        )
        shown = samples[: args.columns], mirrored[nearest[: args.columns]]
        blocks += [[block(images, args.columns, args.scale)] for images in shown]
        rows += [name, "nearest"]
    table(blocks, [], rows).save(args.picture, optimize=True)


def nearest_of(
    images: np.ndarray, others: np.ndarray, are_first: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The mean square difference of values in [0, 1] to the nearest of `others`, and which it is.

    Of images that are the first of the others, to the nearest but itself.
    """
    images, others = (
        group.reshape(len(group), -1).astype(np.float32) / 255 for group in (images, others)
    )
    differences = (images**2).sum(1)[:, None] + (others**2).sum(1) - 2 * images @ others.T
    if are_first:
        np.fill_diagonal(differences, np.inf)
    return differences.min(axis=1).clip(min=0) / images.shape[1], differences.argmin(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["progress", "nearest"])
    parser.add_argument("folder", type=Path, help="of a comparison")
    parser.add_argument("picture", type=Path, help="file to write")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these configurations")
    parser.add_argument("--minutes", type=float, nargs="+", help="these marks")
    parser.add_argument(
        "--sampling",
        help="name of the settings that samples were drawn with; by default the configuration's "
        "first",
    )
    parser.add_argument("--columns", type=int, default=5, help="images in a row of a block")
    parser.add_argument("--scale", type=int, default=1, help="enlarge by this number")
    args = parser.parse_args()
    (draw_progress if args.what == "progress" else draw_nearest)(args)


if __name__ == "__main__":
    main()
