"""Statistics of sequences of vectors: marginals, lag correlations, spectra and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles
MAX_LAG = 5


def quantiles(seqs: Sequence[Tensor], probabilities: Sequence[float] = PROBABILITIES) -> Tensor:
    """Quantiles of each channel over all tokens of sequences (n d): (q d)."""
    tokens = torch.cat(list(seqs)).double()
    return tokens.quantile(torch.tensor(probabilities).to(tokens), dim=0)


def autocorrelations(seqs: Sequence[Tensor], max_lag: int = MAX_LAG) -> Tensor:
    """Correlations of each channel with itself 0 to `max_lag` tokens later: (max_lag + 1, d).

    Over all pairs within a sequence, about the mean of all tokens. 0 where there are no pairs.
    """
    tokens = torch.cat(list(seqs)).double()
    mean, variance = tokens.mean(dim=0), tokens.var(dim=0, correction=0)
    seqs = [seq.double() - mean for seq in seqs]
    rows = []
    for lag in range(max_lag + 1):
        pairs = [seq[: len(seq) - lag] * seq[lag:] for seq in seqs if len(seq) > lag]
        covariance = torch.cat(pairs).mean(dim=0) if pairs else torch.zeros_like(mean)
        rows.append(torch.where(variance > 0, covariance / variance, 0))
    return torch.stack(rows)


def power_spectrum(seqs: Sequence[Tensor], num_frequencies: int = 33) -> Tensor:
    """Power spectral densities of each channel, at frequencies from 0 to 1/2 per token: (f d).

    The mean of the periodograms of all sequences, about the mean of all tokens, with Hann windows
    (Welch 1967). Long sequences are cut into segments of 2 (f - 1) tokens, which overlap by half.
    """
    size = 2 * (num_frequencies - 1)
    mean = torch.cat(list(seqs)).double().mean(dim=0)
    total, count = 0, 0
    for seq in seqs:
        seq = seq.double() - mean
        starts = range(0, max(len(seq) - size, 0) + 1, size // 2)
        for segment in (seq[start : start + size] for start in starts):
            window = torch.hann_window(len(segment) + 2, periodic=False, dtype=torch.double)[1:-1]
            transformed = torch.fft.rfft(segment * window.to(seq).unsqueeze(1), n=size, dim=0)
            total = total + transformed.abs().square() / window.square().sum()
            count += 1
    return total / count


def lengths_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The Kolmogorov-Smirnov distance of the lengths of two sets of sequences, from 0 to 1."""
    a, b = (torch.tensor([len(seq) for seq in seqs]) for seqs in (first, second))
    at = torch.cat((a, b)).unique()
    shares = [(x.unsqueeze(0) <= at.unsqueeze(1)).double().mean(dim=1) for x in (a, b)]
    return (shares[0] - shares[1]).abs().max().item()


def compare(real: Sequence[Tensor], sampled: Sequence[Tensor]) -> dict[str, Any]:
    """How far the statistics of sampled sequences are from those of real ones, plain numbers.

    `quantile_error`: the mean difference of quantiles, in standard deviations of the real ones;
    `autocorrelation_error`: that of lag correlations 1 to `MAX_LAG`; `length_distance`: of
    Kolmogorov and Smirnov; `mean_length` and `std` of both, over all channels.
    """
    std = torch.cat(list(real)).double().std(dim=0).clamp(min=1e-12)
    difference = (quantiles(real) - quantiles(sampled)).abs() / std
    lags = (autocorrelations(real) - autocorrelations(sampled))[1:].abs()
    return dict(
        count=len(sampled),
        quantile_error=difference.mean().item(),
        autocorrelation_error=lags.mean().item(),
        length_distance=lengths_distance(real, sampled),
        real=_facts(real),
        sampled=_facts(sampled),
    )


def _facts(seqs: Sequence[Tensor]) -> dict[str, Any]:
    tokens = torch.cat(list(seqs)).double()
    return dict(
        mean_length=len(tokens) / len(seqs),
        mean=tokens.mean(dim=0).tolist(),
        std=tokens.std(dim=0).tolist(),
    )
