"""A plot of sampled sequences beside real ones, and of the statistics of both."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..utils.files import atomic_write
from .sequence_statistics import PROBABILITIES, autocorrelations, power_spectrum, quantiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = 8  # sequences in a panel
PANELS = 16  # of single sequences
CHANNELS = 4  # of which marginals and spectra are shown
MOST_TOKENS = 200  # of a curve


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def sequences_figure(seqs: Sequence[Tensor], titles: Sequence[str], known: int = 0) -> Figure:
    """Sequences (n d), each in a panel with its title, and a line behind its `known` tokens.

    Of many channels some are drawn, evenly spread; of many sequences the first.
    """
    from matplotlib.figure import Figure

    seqs = [seq.float().cpu() for seq in seqs[:PANELS]]
    columns = min(len(seqs), 4)
    rows = -(-len(seqs) // columns)
    size = (2.6 * columns + 0.5, 1.7 * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    dim = seqs[0].shape[1]
    channels = [i * dim // min(dim, CHANNELS) for i in range(min(dim, CHANNELS))]
    for axis, seq, title in zip(axes, seqs, titles, strict=False):
        axis.plot(seq[:, channels], linewidth=0.9)
        if known:
            axis.axvline(known - 0.5, color="0.6", linewidth=0.9, linestyle=":")
        axis.set_title(title, fontsize=9)
    for axis in axes[len(seqs) :]:
        axis.set_axis_off()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    return figure


def plot_sequences(real: Sequence[Tensor], sampled: Sequence[Tensor], path: Path) -> np.ndarray:
    """Plots sequences (n d) into a file: curves, marginals, correlations, spectra and lengths.

    Returns:
        The picture, (height, width, 3), 8-bit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    real, sampled = ([seq.float() for seq in seqs] for seqs in (real, sampled))
    dim = real[0].shape[1]
    channels = [i * dim // min(dim, CHANNELS) for i in range(min(dim, CHANNELS))]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    both = (("real", real, "0.25", "-"), ("sampled", sampled, "tab:orange", "--"))

    low, high = torch.cat(real)[:, 0].aminmax()
    margin = 0.2 * float(high - low) or 1.0
    for axis, (name, seqs, color, _) in zip(axes[0], both, strict=False):
        for seq in seqs[:CURVES]:
            axis.plot(seq[:MOST_TOKENS, 0], color=color, linewidth=0.8)
        axis.set(title=f"{name}, channel 0", xlabel="token")
        axis.set_ylim(float(low) - margin, float(high) + margin)

    lengths = [torch.tensor([len(seq) for seq in seqs]) for seqs in (real, sampled)]
    if len(torch.cat(lengths).unique()) > 1:
        bins = np.linspace(
            min(map(int, map(min, lengths))), max(map(int, map(max, lengths))) + 1, 20
        )
        for (name, _, color, _), found in zip(both, lengths, strict=True):
            axes[0, 2].hist(found, bins, density=True, histtype="step", color=color, label=name)
        axes[0, 2].set(title="lengths", xlabel="tokens")
    else:
        points = [quantiles(seqs).flatten() for _, seqs, *_ in both]
        axes[0, 2].scatter(*points, s=10, color="tab:orange")
        axes[0, 2].axline((0, 0), slope=1, color="0.7", linewidth=0.8)
        axes[0, 2].set(title="quantiles of all channels", xlabel="real", ylabel="sampled")

    for name, seqs, color, line in both:
        tokens, style = torch.cat(list(seqs)), dict(color=color, linestyle=line, linewidth=1)
        for channel in channels:
            values = tokens[:, channel].sort().values
            shares = np.linspace(0, 1, len(values))
            first = dict(label=name) if channel == channels[0] else {}
            axes[1, 0].plot(values, shares, **style, **first)
        spectrum, lags = power_spectrum(seqs)[1:, channels], autocorrelations(seqs)[:, channels]
        axes[1, 1].plot(lags, **style)
        frequencies = np.linspace(0, 0.5, len(spectrum) + 1)[1:]
        axes[1, 2].semilogy(frequencies, spectrum.clamp(min=1e-12), **style)
    axes[1, 0].legend()
    names = ", ".join(map(str, channels))
    axes[1, 0].set(title=f"distribution, channels {names}", yticks=PROBABILITIES)
    axes[1, 1].set(title="correlation of a channel with itself", xlabel="lag in tokens")
    axes[1, 2].set(title="power spectral density", xlabel="frequency per token")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png", dpi=100))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
