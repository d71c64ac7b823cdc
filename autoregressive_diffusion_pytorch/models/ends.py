"""The end of a sequence: after each token, the probability that it was the last one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.measured import MeasuredModule
from ..utils.rng import Generators, rand


class EndHead(MeasuredModule):
    """A classifier of conditions z (… dim): did the sequence end with the token before?

    Of many tokens few are the last. In training both answers weigh the same in all: an end counts
    as much as all tokens that go on, `balance` of them for each end. The weight moves the log-odds
    that are learned by its log, which is taken off again: probabilities are those of the data.

    Args:
        dim: width of a condition.
    """

    measured_buffers = ("balance",)

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        self.register_buffer("balance", torch.tensor(math.nan))
        self.loss = torch.zeros(())  # of the last batch, for the log

    @torch.no_grad()
    def measure(self, is_end: Tensor) -> None:
        """Counts the tokens that go on for each end, of answers (m,), unless that is known."""
        if not self.is_measured:
            ends = is_end.sum()
            if 0 < ends < len(is_end):
                self.balance.copy_((len(is_end) - ends) / ends)
                self._is_measured = True

    def losses(self, z: Tensor, is_end: Tensor) -> Tensor:
        """The loss of each answer: (… dim), (…) -> (…); on average log 2 where nothing is known."""
        if self.training:
            self.measure(is_end.flatten())
        weight = self.balance if self.is_measured else 1.0
        log_odds = self.proj(z).squeeze(-1).float()
        losses = torch.where(is_end, weight * F.softplus(-log_odds), F.softplus(log_odds))
        losses = losses * (1 + weight) / (2 * weight)
        self.loss = losses.detach().mean()
        return losses

    def log_prob(self, z: Tensor, is_end: Tensor) -> Tensor:
        """The log-probability of each answer in nats: (… dim), (…) -> (…)."""
        log_odds = self.log_odds(z)
        return F.logsigmoid(torch.where(is_end, log_odds, -log_odds))

    def log_odds(self, z: Tensor) -> Tensor:
        """The log-odds of an end: (… dim) -> (…)."""
        log_odds = self.proj(z).squeeze(-1).float()
        return log_odds - self.balance.log() if self.is_measured else log_odds

    def draw(self, z: Tensor, threshold: float | None, generator: Generators) -> Tensor:
        """Whether sequences end: (b dim) -> (b,).

        Args:
            threshold: they do where the probability is above it; None to draw.
        """
        probability = self.log_odds(z).sigmoid()
        if threshold is not None:
            return probability > threshold
        return rand(probability.shape, generator, z.device, torch.float32) < probability
