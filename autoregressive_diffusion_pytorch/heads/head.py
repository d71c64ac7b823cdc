"""What every head is: a loss for each token, and a way to draw tokens."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.checks import check_positive_int
from autoregressive_diffusion_pytorch.denoiser import MLP


class Head(Module, ABC):
    """The distribution of one token given its condition.

    A head knows nothing of sequences: it sees tokens `(… d)` and conditions `(… dim)`.

    Args:
        net: the denoiser.
        num_sample_steps: steps of the sampler, unless `sample` is told another number.
        num_noise_draws: independent noise draws for each token and training step. More of them train the head better for the
            same pass through the backbone (Li et al. 2024 use 4).
    """

    def __init__(self, net: MLP, *, num_sample_steps: int, num_noise_draws: int):
        super().__init__()
        check_positive_int(num_sample_steps=num_sample_steps, num_noise_draws=num_noise_draws)
        self.net = net
        self.num_sample_steps = num_sample_steps
        self.num_noise_draws = num_noise_draws

    @property
    def config(self) -> dict:
        """The constructor's arguments, but for the network: a head keeps each under its own name."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self)).parameters)[1:]}

    def forward(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """The loss of each token, `(… d), (… dim) -> (…)`, averaged over the token's width and the noise draws."""
        draws = tokens.expand(self.num_noise_draws, *tokens.shape)
        # noise levels and weights span orders of magnitude: never below single precision
        draws = draws.to(torch.promote_types(tokens.dtype, torch.float32))
        return self.losses(draws, cond).mean(dim=0)

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor,
        *,
        num_steps: int | None = None,
        temperature: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draws one token for each condition, `(… dim) -> (… d)`.

        Args:
            cond: the conditions.
            num_steps: steps of the sampler, at least 1; by default the head's `num_sample_steps`.
            temperature: factor on every noise that the sampler draws, at least 0. A Gaussian's standard deviation is
                multiplied by just this factor; 1 changes nothing, 0 is deterministic.
            generator: source of randomness, on any device; by default torch's global one.

        Returns:
            Tokens in single precision or the condition's, whichever is higher: so is the sampler's state.
        """
        num_steps = self.num_sample_steps if num_steps is None else num_steps
        check_positive_int(num_steps=num_steps)
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        shape = (*cond.shape[:-1], self.net.dim_input)
        dtype = torch.promote_types(cond.dtype, torch.float32)
        source = cond.device if generator is None else generator.device

        def noise() -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=source, dtype=dtype)
            return temperature * drawn.to(cond.device)

        return self.draw(cond, num_steps, noise)

    @abstractmethod
    def losses(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """The loss of each token at one noise draw: tokens `(k … d)` and conditions `(… dim)` to `(k …)`."""

    @abstractmethod
    def draw(self, cond: Tensor, num_steps: int, noise: Callable[[], Tensor]) -> Tensor:
        """Runs the sampler: conditions `(… dim)` to tokens `(… d)`, all randomness from `noise() -> (… d)`."""
