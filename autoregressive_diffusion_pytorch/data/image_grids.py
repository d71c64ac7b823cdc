"""Writing images: as one grid, or as single files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from ..utils.files import atomic_write
from ..utils.text import printable
from .fonts import readable

# pixels
GRID_PADDING = 2
ROW_NAME_MARGIN = 6


def labels_by_row(num_classes: int, count: int) -> tuple[Tensor, int]:
    """Labels of at least `count` images, one class per row, and the number of columns.

    Of more classes than `count` some, evenly.
    """
    rows = min(num_classes, count)
    columns = math.ceil(count / rows)
    labels = torch.arange(rows) * num_classes // rows
    return labels.repeat_interleave(columns), columns


def save_image_grid(
    images: Tensor,
    path: str | Path,
    columns: int | None = None,
    row_names: Sequence[str] | None = None,
) -> None:
    """Writes the `image_grid` of these arguments as a PNG file."""
    picture = image_grid(images, columns, row_names)
    atomic_write(path, lambda partial: picture.save(partial, format="png"))


def image_grid(
    images: Tensor, columns: int | None = None, row_names: Sequence[str] | None = None
) -> Image.Image:
    """Images (b c h w) in [0, 1] as one picture, small ones enlarged.

    Args:
        images: of more than 4 channels the first three are shown.
        columns: images in a row; by default as many as make the grid about square.
        row_names: written beside the rows.
    """
    enlarge = max(1, round(48 / max(images.shape[-2:])))
    images = images[:, :3] if images.shape[1] > 4 else images
    images = images.float().repeat_interleave(enlarge, dim=-2).repeat_interleave(enlarge, dim=-1)
    grid = make_grid(
        images, nrow=columns or math.ceil(math.sqrt(len(images))), padding=GRID_PADDING
    )
    picture = to_pil_image(grid.mul(255).add(0.5).clamp(0, 255).byte().cpu())
    if row_names is not None:
        picture = _with_row_names(picture, row_names, images.shape[-2] + GRID_PADDING)
    return picture


def _with_row_names(picture: Image.Image, names: Sequence[str], row_height: int) -> Image.Image:
    size = max(10, min(16, row_height // 2))
    texts = [readable(printable(name), size) for name in names]
    margin = round(max(font.getlength(text) for text, font in texts)) + 2 * ROW_NAME_MARGIN
    wide = Image.new(picture.mode, (margin + picture.width, picture.height), "black")
    wide.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(wide)
    for i, (text, font) in enumerate(texts):
        place = (ROW_NAME_MARGIN, GRID_PADDING + (i + 0.5) * row_height)
        draw.text(place, text, fill="white", font=font, anchor="lm")
    return wide


def save_image_files(
    images: Tensor, folder: str | Path, numbers: Sequence[int] | None = None
) -> None:
    """Writes images (b c h w) in [0, 1] into `folder`, each as a PNG file named by its number."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(len(images)) if numbers is None else numbers
    for i, image in zip(numbers, images.float(), strict=True):
        to_pil_image(image.mul(255).round().byte()).save(folder / f"{i:05}.png")
