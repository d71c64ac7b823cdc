"""What every head is: a loss for each token, a way to draw tokens, and, where it has a density, how probable a token is."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Generator, Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.heads.guidance import Guidance


class Head(Module, ABC):
    """The distribution of one token given its condition z.

    A head knows nothing of sequences: it sees tokens `(… d)` and conditions `(… dim)`.
    """

    @property
    def config(self) -> dict:
        """The constructor's arguments, but for the network: a head keeps each under its own name."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self)).parameters)[1:]}

    def measure(self, tokens: Tensor) -> None:
        """Learns from tokens (… d) what a head must know of the data's scale before it is trained, if anything."""

    @abstractmethod
    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """The loss of each token, `(… d), (… dim) -> (…)`."""

    @abstractmethod
    def sample(
        self,
        z: Tensor,
        *,
        guidance: Sequence[Guidance] = (),
        temperature: float = 1.0,
        generator: Generator | None = None,
        **own,
    ) -> Tensor:
        """Draws one token for each condition, `(… dim) -> (… d)`."""

    @abstractmethod
    def log_prob(self, tokens: Tensor, z: Tensor, **own) -> Tensor:
        """The log-density of each token in nats, `(… d), (… dim) -> (…)`."""
