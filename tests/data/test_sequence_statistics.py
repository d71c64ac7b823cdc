import math

import pytest
import torch

from autoregressive_diffusion_pytorch.data.sequence_plots import plot_sequences
from autoregressive_diffusion_pytorch.data.sequence_statistics import (
    autocorrelations,
    compare,
    lengths_distance,
    power_spectrum,
    quantiles,
)

RHO = 0.8


def process(count=400, length=64):
    """AR(1) processes of variance 1, of lengths up to `length`."""
    x = [torch.randn(count, 2)]
    for _ in range(length - 1):
        x.append(RHO * x[-1] + math.sqrt(1 - RHO**2) * torch.randn(count, 2))
    return list(torch.stack(x, dim=1))


def test_quantiles_of_a_gaussian():
    found = quantiles(process())
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    # about 25,600 tokens, of which (1 - RHO) / (1 + RHO) count as independent
    torch.testing.assert_close(found.float(), normal[:, None].expand(-1, 2), rtol=0, atol=0.1)


def test_correlations_of_an_autoregressive_process():
    seqs = [seq[: 8 + i % 40] for i, seq in enumerate(process())]
    found = autocorrelations(seqs)
    expected = RHO ** torch.arange(6.0)
    torch.testing.assert_close(found.float(), expected[:, None].expand(-1, 2), rtol=0, atol=0.05)


def test_correlations_without_pairs_are_zero():
    assert (autocorrelations([torch.randn(2, 3)] * 3)[2:] == 0).all()


def test_the_spectrum_of_an_autoregressive_process():
    found = power_spectrum(process(1000), 33)
    frequencies = torch.linspace(0, 0.5, 33)
    expected = (1 - RHO**2) / (1 - 2 * RHO * torch.cos(2 * math.pi * frequencies) + RHO**2)
    ratio = found[2:].float() / expected[2:, None]  # the window blurs the peak
    assert 0.85 < ratio.min() < ratio.max() < 1.2


def test_the_distance_of_lengths():
    first = [torch.zeros(n, 1) for n in (1, 2, 3, 4)]
    assert lengths_distance(first, first) == 0
    assert lengths_distance(first, [torch.zeros(9, 1)]) == 1
    assert lengths_distance(first, first[:2]) == 0.5


def test_equal_sequences_have_no_distance():
    seqs = process(20, 10)
    found = compare(seqs, seqs)
    assert found["quantile_error"] == found["autocorrelation_error"] == 0
    moved = compare(seqs, [seq + 1 for seq in seqs])
    assert moved["quantile_error"] == pytest.approx(1, abs=0.2)  # standard deviations
    assert moved["sampled"]["mean"][0] == pytest.approx(found["real"]["mean"][0] + 1)


@pytest.mark.parametrize("lengths", [(10, 10), (4, 10)])
def test_a_plot_is_written(tmp_path, lengths):
    pytest.importorskip("matplotlib")
    seqs = [seq[:length] for seq, length in zip(process(2, 10), lengths, strict=True)]
    picture = plot_sequences(seqs, seqs, tmp_path / "plot.png")
    assert picture.shape == (650, 1200, 3)
    assert (tmp_path / "plot.png").stat().st_size > 1000
