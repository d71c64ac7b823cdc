"""Pictures of an evaluation: curves of quality against cost, and where an image is surprising."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def pyplot():
    """matplotlib's, for files alone."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'autoregressive-diffusion-pytorch[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_curve(curve: list[dict], path: Path) -> None:
    """Bits per dimension, and the Fréchet distance where it was measured, against the evaluations of the head's network."""
    plt = pyplot()
    bits = [(point["evaluations"], point["bits_per_dim"]) for point in curve if "bits_per_dim" in point]
    distances = [(point["evaluations"], point["generated"]["frechet_distance"]) for point in curve if "generated" in point]
    figure, axes = plt.subplots(
        1, 1 + bool(distances), figsize=(4.5 * (1 + bool(distances)), 3.6), squeeze=False, layout="constrained"
    )
    steps, values = zip(*bits, strict=True)
    means, errors = zip(*((value["mean"], value["standard_error"]) for value in values), strict=True)
    axes[0, 0].errorbar(steps, means, yerr=errors, marker="o", markersize=4, capsize=3)
    axes[0, 0].set_ylabel("bits per dimension")
    if distances:
        axes[0, 1].plot(*zip(*distances, strict=True), marker="o", markersize=4)
        axes[0, 1].set_ylabel("Fréchet distance of generated images")
    for axis in axes[0]:
        ticks = [point["evaluations"] for point in curve]
        axis.set(xlabel="evaluations of the head's network for each token", xscale="log")
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    _save(figure, path)


def plot_surprise(image: Tensor, nats: Tensor, path: Path) -> None:
    """An image (c h w) in [0, 1], and beside it the nats of its patches (rows columns) as a heat map."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    image = image[:1] if image.shape[0] < 3 else image[:3]
    pixels = image.squeeze(0) if len(image) == 1 else image.movedim(0, -1)
    left.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    height, width = image.shape[-2:]
    drawn = right.imshow(nats.numpy(), cmap="inferno", extent=(0, width, height, 0))
    figure.colorbar(drawn, ax=right, label="nats a patch")
    for axis, title in ((left, "image"), (right, f"surprise: {nats.sum():.0f} nats in all")):
        axis.set(title=title, xticks=[], yticks=[])
    _save(figure, path)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)
    pyplot().close(figure)
