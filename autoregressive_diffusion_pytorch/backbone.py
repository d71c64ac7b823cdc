"""The causal transformer: the x-transformers `Decoder`, its key/value cache and learned positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, ParameterList
from x_transformers import Decoder

from autoregressive_diffusion_pytorch.checks import check_positive_int

# arguments of the Decoder that the models have arguments of their own for
RESERVED_DECODER_KWARGS = {"dim": "dim", "depth": "depth", "heads": "heads", "attn_dim_head": "dim_head"}


class AxialPositions(Module):
    """Learned absolute positions: one table for each axis, summed; a plain sequence has one axis.

    Args:
        dim: width of the model.
        axis_lengths: lengths of the axes, the last one running fastest (row, column for an image).
    """

    def __init__(self, dim: int, axis_lengths: tuple[int, ...]):
        super().__init__()
        self.axis_lengths = axis_lengths
        # of the size of embedded tokens: much smaller ones are learnt late, and with them where a layer is to look
        self.tables = ParameterList([nn.Parameter(torch.randn(length, dim) * 0.5) for length in axis_lengths])

    def forward(self, start: int, stop: int) -> Tensor:
        """The embeddings of positions `start` to `stop`, (n dim)."""
        positions = torch.arange(start, stop, device=self.tables[0].device)
        total = 0
        for length, table in zip(reversed(self.axis_lengths), reversed(list(self.tables)), strict=True):
            total = total + table[positions % length]
            positions = positions // length
        return total


@dataclass
class State:
    """What a `Backbone` remembers of a sequence between steps."""

    length: int
    cache: Any = None  # keys and values, of x-transformers
    embeds: Tensor | None = None  # everything read so far, for decoders that cannot be cached


class Backbone(Module):
    """A causal transformer over embeddings: one full pass for training, one step for sampling, with the same numbers.

    Args:
        dim: width of the model.
        max_seq_len: longest sequence, or a tuple of axis lengths for axial positions.
        depth, dim_head, heads: of the `Decoder`.
        decoder_kwargs: further arguments of the x-transformers `Decoder`. They are tried out on a small decoder at once: a
            configuration that lets a position see a later one is refused, and one whose key/value cache would give other
            numbers than the full pass is sampled without cache (`can_cache` tells).
    """

    def __init__(
        self,
        dim: int,
        *,
        max_seq_len: int | tuple[int, ...],
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 8,
        decoder_kwargs: dict | None = None,
    ):
        super().__init__()
        decoder_kwargs = decoder_kwargs or {}
        for name, own in RESERVED_DECODER_KWARGS.items():
            if name in decoder_kwargs:
                raise ValueError(f"decoder_kwargs must not hold {name!r}: the model's own argument `{own}` sets it")

        axis_lengths = tuple(max_seq_len) if isinstance(max_seq_len, (tuple, list)) else (max_seq_len,)
        if not axis_lengths:
            raise ValueError("max_seq_len must be a whole number of at least 1, or a tuple of such, got an empty tuple")
        for length in axis_lengths:
            check_positive_int(max_seq_len=length)
        self.max_seq_len = math.prod(axis_lengths)
        self.positions = AxialPositions(dim, axis_lengths)

        arguments = dict(depth=depth, heads=heads, attn_dim_head=dim_head, **decoder_kwargs)
        try:
            self.decoder = Decoder(dim=dim, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"decoder_kwargs {decoder_kwargs} are refused by the x-transformers Decoder: {error}") from error
        if self.decoder.cross_attend or self.decoder.need_condition:
            raise ValueError(
                f"decoder_kwargs {decoder_kwargs} make a decoder with cross-attention or adaptive norms, which needs an "
                "input of its own that this model does not give"
            )
        self.can_cache = not decoder_kwargs or _try_out(arguments, dim)

    def forward(self, embeds: Tensor) -> Tensor:
        """(b n dim) to (b n dim); the output at a position depends on the inputs up to and including it."""
        return self.decoder(embeds + self.positions(0, embeds.shape[1]))

    def step(self, embeds: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads the next embeddings (b m dim) of a sequence and returns the output at the last one, (b dim)."""
        start = state.length if state else 0
        stop = start + embeds.shape[1]
        embeds = embeds + self.positions(start, stop)
        if self.can_cache:
            cache = state.cache if state else None
            # with a cache the Decoder reads as many of the last inputs as `cache_age` says, and counts on from its length
            outputs, cache = self.decoder(embeds, cache=cache, cache_age=embeds.shape[1], return_hiddens=True)
            return outputs[:, -1], State(stop, cache=cache)
        if state:
            embeds = torch.cat((state.embeds, embeds), dim=1)
        return self.decoder(embeds)[:, -1], State(stop, embeds=embeds)


@torch.no_grad()
def _try_out(arguments: dict, dim: int, length: int = 6, narrow: int = 32) -> bool:
    """Whether a decoder of these arguments gives the same numbers with its cache as without.

    Tried on a decoder that is narrower than `dim` where its arguments fit any width, its parameters moved away from initial values
    that would hide a part of it (gates and layer scales that start at zero).

    Raises:
        ValueError: if the decoder fails, or is not causal.
    """

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=0, atol=1e-4)  # of outputs around 1, in single precision

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            decoder = Decoder(dim=narrow, **arguments)
            decoder(torch.randn(1, length, narrow))
        except Exception:  # an argument that fits only the real width, such as a module
            narrow = dim
            decoder = Decoder(dim=dim, **arguments)
        decoder = decoder.float().eval()
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        embeds = torch.randn(2, length, narrow, dtype=torch.float32)

        try:
            full = decoder(embeds)
            prefixes = torch.stack([decoder(embeds[:, : i + 1])[:, -1] for i in range(length)], dim=1)
        except Exception as error:
            raise ValueError(f"decoder_kwargs make a decoder that fails on sequences of 1 to {length} tokens: {error}") from error
        if not same(full, prefixes):
            raise ValueError("decoder_kwargs make a decoder whose output at a position changes with later positions")

        try:
            # the first pass reads several at once, as with a prompt
            outputs, cache = decoder(embeds[:, :2], return_hiddens=True)
            stepped = [outputs]
            for i in range(2, length):
                output, cache = decoder(embeds[:, i : i + 1], cache=cache, return_hiddens=True)
                stepped.append(output)
        except Exception:  # x-transformers has no cache for some of its options, and says so in many ways
            return False
        return same(full, torch.cat(stepped, dim=1))
