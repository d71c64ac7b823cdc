"""Pictures of an evaluation: curves of quality against cost, and where an image is surprising."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

SETTINGS = ("context_guidance", "guidance_scale", "temperature", "num_steps")
DISTANCES = dict(frechet_distance="Fréchet distance", sliced_wasserstein="sliced Wasserstein distance")


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401 - asks whether it is there
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'autoregressive-diffusion-pytorch[eval]'") from error


def plot_curve(report: dict, path: Path) -> None:
    """The curve of a report of `evaluate`: bits per dimension, beside those by the report's own solver, and the distance of
    generated images, against the evaluations of the head's network."""
    curve, exact = report["curve"], report["bits_per_dim"]
    bits = [
        (point["evaluations"], *map(point["bits_per_dim"].get, ("mean", "standard_error")))
        for point in curve
        if "bits_per_dim" in point
    ]
    generated = [point for point in curve if "generated" in point]
    metric = "frechet_distance" if generated and "frechet_distance" in generated[0]["generated"] else "sliced_wasserstein"
    distances = [(point["evaluations"], point["generated"][metric]) for point in generated]
    figure, axes = _figure(1 + bool(distances), width=4.5 * (1 + bool(distances)), height=3.6)
    axes[0].axhline(exact["mean"], color="grey", linewidth=1, label=f"by {exact['solver']}")
    if bits:
        steps, means, errors = zip(*bits, strict=True)
        axes[0].errorbar(steps, means, yerr=errors, marker="o", markersize=4, capsize=3, label="by rk4")
    axes[0].set(ylabel="bits per dimension, with the solver's error")
    axes[0].legend()
    if distances:
        axes[1].plot(*zip(*distances, strict=True), marker="o", markersize=4)
        axes[1].set(ylabel=f"{DISTANCES[metric]} of generated images")
    ticks = [point["evaluations"] for point in curve]
    for axis in axes:
        axis.set(xlabel="evaluations of the head's network for each token", xscale="log")
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    _save(figure, path)


def plot_tuning(report: dict, path: Path) -> None:
    """The report of a tuning: for each setting the distance by its values, the others being those that were chosen."""
    rows, metric = report["rows"], report["metric"]
    names = [name for name in rows[0] if len({row[name] for row in rows}) > 1 and name in SETTINGS]
    best = report["chosen"]
    figure, axes = _figure(max(len(names), 1), width=3.6 * max(len(names), 1), height=3.4)
    for axis, name in zip(axes, names, strict=False):
        alike = [row for row in rows if all(row[other] == best[other] for other in SETTINGS if other != name and other in row)]
        points = sorted((row[name], row[metric]) for row in alike)
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4)
        axis.plot(best[name], best[metric], marker="o", markersize=9, fillstyle="none", color="black")
        axis.set(xlabel=name.replace("_", " "), ylabel=DISTANCES[metric])
    _save(figure, path)


def plot_surprise(image: Tensor, nats: Tensor, path: Path) -> None:
    """An image (c h w) in [0, 1], and beside it the nats of its patches (rows columns) as a heat map."""
    figure, (left, right) = _figure(2, width=9, height=4)
    pixels = image[0] if image.shape[0] < 3 else image[:3].movedim(0, -1)
    left.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    height, width = image.shape[-2:]
    drawn = right.imshow(nats.numpy(), cmap="inferno", extent=(0, width, height, 0))
    figure.colorbar(drawn, ax=right, label="nats a patch")
    for axis, title in ((left, "image"), (right, f"surprise: {nats.sum():.0f} nats in all")):
        axis.set(title=title, xticks=[], yticks=[])
    _save(figure, path)


def _figure(columns: int, width: float, height: float):
    """A figure and its axes. Not pyplot's: that would change the backend of whoever calls."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)
