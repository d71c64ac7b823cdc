"""The average of a training's last losses, from which spikes stand out."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class RunningAverage:
    """The average of the last hundred or so losses, and the square of how far they lie from it."""

    count: int = 0
    average: float = 0.0
    variance: float = 0.0

    LENGTH = 100
    SPIKE = 6.0  # standard deviations

    def add(self, loss: float) -> None:
        self.count += 1
        weight = 1 / min(self.count, self.LENGTH)
        difference = loss - self.average
        self.average += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss lies `SPIKE` standard deviations above the average, of half a `LENGTH` of losses at least."""
        return self.count >= self.LENGTH // 2 and loss > self.average + self.SPIKE * math.sqrt(self.variance)
