"""A comparison of runs as one picture."""

from __future__ import annotations

from pathlib import Path

from ..utils.files import atomic_write
from .comparison import Comparison
from .curves import LIGHT, frame_of, thinned

QUIET = "#6b6a64"
ROW, LOSSES, WIDTH = 0.26, 2.8, 4.2  # inches
LONGEST = 36  # characters of a text, such as a path: its end tells more


def need_matplotlib() -> None:
    """Raises a ModuleNotFoundError that names the extra, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401 - asks whether it is there
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a .png needs matplotlib: pip install 'autoregressive-diffusion-pytorch[eval]'; "
            "a .html needs nothing"
        ) from error


def write_picture(comparison: Comparison, file: Path) -> None:
    """Draws samples above a table of settings and numbers above the loss curves.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    pictures = _pictures(comparison)
    count = len(comparison.names)
    rows = [*comparison.settings, *comparison.numbers]
    width = max(WIDTH * count, 8.0)
    own_width = width / count
    shapes = [picture.shape for picture in pictures if picture is not None]
    grids = max((own_width * shape[0] / shape[1] for shape in shapes), default=0.5)
    heights = [min(grids, 1.4 * own_width) + 0.4, ROW * (len(rows) + 1.5), LOSSES]
    figure = Figure(figsize=(width, sum(heights) + 0.8), layout="constrained")
    parts = figure.subfigures(3, 1, height_ratios=heights)
    for i, axis in enumerate(parts[0].subplots(1, count, squeeze=False)[0]):
        axis.axis("off")
        grid = comparison.grids[i]
        drawn = "no samples yet" if grid is None else f"step {grid[0]:,}"
        axis.set_title(f"{_cut(comparison.names[i])}, {drawn}", fontsize=10, color=_color(i))
        if pictures[i] is not None:
            axis.imshow(pictures[i], interpolation="antialiased")
            axis.set_anchor("N")
    _draw_table(parts[1].subplots(), comparison)
    _draw_curves(parts[2].subplots(), comparison)
    if comparison.notes:
        figure.supxlabel("\n".join(comparison.notes), fontsize=8, color=QUIET)
    options = dict(dpi=130, format="png")
    atomic_write(file, lambda partial: figure.savefig(partial, **options))


def _pictures(comparison: Comparison) -> list:
    """The pictures of samples, (height, width, 3), 8-bit, or None."""
    import numpy as np
    from PIL import Image

    found = []
    for grid in comparison.grids:
        if grid is None:
            found.append(None)
            continue
        with Image.open(grid[1]) as picture:
            found.append(np.asarray(picture.convert("RGB")))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _color(run: int) -> str:
    return LIGHT[run % len(LIGHT)]


def _draw_table(axis, comparison: Comparison) -> None:
    rows = [*comparison.settings, *comparison.numbers]
    axis.axis("off")
    total = len(rows) + 1.5
    column = 1 / (len(comparison.names) + 1)
    style = dict(transform=axis.transAxes, fontsize=9, va="center")
    for i, name in enumerate(comparison.names):
        place = ((i + 1) * column, 1 - 0.5 / total)
        axis.text(*place, _cut(name), color=_color(i), weight="bold", **style)
    for j, row in enumerate(rows):
        below = j >= len(comparison.settings)  # a gap between settings and numbers
        y = 1 - (j + 1.5 + 0.4 * below) / total
        axis.text(0, y, row.name, color=QUIET, **style)
        for i, text in enumerate(row.texts):
            weight = "bold" if i == row.best else "normal"
            axis.text((i + 1) * column, y, _cut(text), weight=weight, **style)


def _draw_curves(axis, comparison: Comparison) -> None:
    frame = frame_of([*comparison.losses, *comparison.validation_losses])
    if frame is None:
        axis.axis("off")
        return
    for i, name in enumerate(comparison.names):
        if points := thinned(comparison.losses[i]):
            axis.plot(*zip(*points, strict=True), color=_color(i), linewidth=1.5, label=_cut(name))
        if points := comparison.validation_losses[i]:
            axis.plot(*zip(*points, strict=True), "o", color=_color(i), markersize=5)
    axis.set(xlim=(0, frame.right), ylim=(frame.bottom, frame.top), xlabel="step")
    axis.set_ylabel("loss in training" + (", dots: validation" * any(comparison.validation_losses)))
    axis.spines[["top", "right"]].set_visible(False)
    if any(comparison.losses):
        axis.legend(frameon=False, fontsize=9)
