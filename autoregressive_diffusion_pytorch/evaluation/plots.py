"""Plots of an evaluation: quality against cost, settings, and surprise by patch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..models.settings import GenerationSettings
from ..utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCES = dict(
    frechet_distance="Fréchet distance", sliced_wasserstein="sliced Wasserstein distance"
)


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401 - asks whether it is there
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'autoregressive-diffusion-pytorch[eval]'"
        ) from error


def plot_curve(report: dict, path: Path) -> None:
    """The curve of a report of `evaluate`, against the number of function evaluations.

    Bits per dimension, beside those by the report's own solver, and a distance of generated images.
    """

    def points(name: str) -> list[tuple[int, dict]]:
        return [(point["evaluations"], point[name]) for point in report["curve"] if name in point]

    name = "nats_per_dim" if "nats_per_dim" in report else "bits_per_dim"
    bits, generated, exact = points(name), points("generated"), report.get(name)
    panels = (exact is not None) + bool(generated)
    figure, axes = _figure(panels, width=4.5 * panels, height=3.6)
    if exact is not None:
        axes[0].axhline(exact["mean"], color="grey", linewidth=1, label=f"by {exact['solver']}")
        if bits:
            steps, found = zip(*bits, strict=True)
            means, errors = ([one[key] for one in found] for key in ("mean", "standard_error"))
            style = dict(marker="o", markersize=4, capsize=3, label="by rk4")
            axes[0].errorbar(steps, means, yerr=errors, **style)
        axes[0].set(ylabel=f"{name[:4]} per dimension, with the solver's error")
        axes[0].legend()
    if generated:
        steps, found = zip(*generated, strict=True)
        metric = next(metric for metric in DISTANCES if metric in found[0])
        axes[-1].plot(steps, [one[metric] for one in found], marker="o", markersize=4)
        axes[-1].set(ylabel=f"{DISTANCES[metric]} of generated images")
    ticks = [point["evaluations"] for point in report["curve"]]
    for axis in axes:
        axis.set(xlabel="function evaluations (NFE) per token", xscale="log")
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    _save(figure, path)


def plot_tuning(report: dict, path: Path) -> None:
    """The report of a tuning: the distance by the values of each setting, the others as chosen."""
    rows, metric, best = report["rows"], report["metric"], report["chosen"]
    settings = [field.name for field in fields(GenerationSettings) if field.name in best]
    names = [name for name in settings if len({row[name] for row in rows}) > 1]
    columns = max(len(names), 1)
    figure, axes = _figure(columns, width=3.6 * columns, height=3.4)
    for axis, name in zip(axes, names, strict=False):
        others = [other for other in settings if other != name]
        alike = [row for row in rows if all(row[other] == best[other] for other in others)]
        points = sorted((row[name], row[metric]) for row in alike)
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4)
        axis.plot(
            best[name], best[metric], marker="o", markersize=9, fillstyle="none", color="black"
        )
        axis.set(xlabel=name.replace("_", " "), ylabel=DISTANCES[metric])
    _save(figure, path)


def plot_surprise(image: Tensor, nats: Tensor, path: Path) -> None:
    """Writes the `surprise_figure` as a PNG file."""
    _save(surprise_figure(image, nats), path)


def surprise_figure(image: Tensor, nats: Tensor) -> Figure:
    """An image (c h w) in [0, 1] beside a heat map of the nats of its patches (rows columns)."""
    figure, (left, right) = _figure(2, width=9, height=4)
    pixels = image[0] if image.shape[0] < 3 else image[:3].movedim(0, -1)
    left.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    height, width = image.shape[-2:]
    drawn = right.imshow(nats.numpy(), cmap="inferno", extent=(0, width, height, 0))
    figure.colorbar(drawn, ax=right, label="nats per patch")
    for axis, title in ((left, "image"), (right, f"surprise: {nats.sum():.0f} nats in all")):
        axis.set(title=title, xticks=[], yticks=[])
    return figure


def _figure(columns: int, width: float, height: float):
    """A figure and its axes. Not pyplot's: that would change the backend of whoever calls."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure, path: Path) -> None:
    atomic_write(path, lambda partial: figure.savefig(partial, dpi=120, format="png"))
