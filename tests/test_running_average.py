import math
import statistics

import pytest
import torch

from autoregressive_diffusion_pytorch.running_average import RunningAverage


def test_average_and_variance_of_the_first_hundred():
    numbers = torch.randn(100).double().tolist()
    average = RunningAverage()
    for number in numbers:
        average.add(number)
    assert average.average == pytest.approx(statistics.mean(numbers))
    assert average.variance == pytest.approx(statistics.pvariance(numbers))


def test_it_forgets():
    average = RunningAverage()
    for number in [100.0] * 100 + [1.0] * 2000:
        average.add(number)
    assert average.average == pytest.approx(1.0, abs=1e-5)
    assert average.variance < 1e-3


def test_a_spike_stands_out():
    average = RunningAverage()
    assert not average.is_spike(1e9)  # of nothing yet
    for number in (0.1 * torch.randn(1000)).tolist():
        assert not average.is_spike(number)
        average.add(number)
    assert average.is_spike(average.average + 7 * math.sqrt(average.variance))
    assert not average.is_spike(-1e9)
    assert not average.is_spike(math.nan)
