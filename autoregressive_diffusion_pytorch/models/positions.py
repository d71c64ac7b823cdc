"""Learned absolute positions."""

from __future__ import annotations

from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module, ParameterList


class AxialPositions(Module):
    """One table of embeddings per axis, summed; a plain sequence has one axis.

    Args:
        dim: width of the model.
        axis_lengths: lengths of the axes, the last one running fastest (row, column for an image).
    """

    def __init__(self, dim: int, axis_lengths: tuple[int, ...]):
        super().__init__()
        self.axis_lengths = axis_lengths
        # with the std of embedded tokens: much smaller ones are learned late, and with them where a
        # layer attends
        tables = [nn.Parameter(torch.randn(length, dim) * 0.5) for length in axis_lengths]
        self.tables = ParameterList(tables)

    def forward(self, positions: Tensor) -> Tensor:
        """The embeddings of positions (…), numbered through all axes: (… dim)."""
        total = 0
        for length, table in zip(
            reversed(self.axis_lengths), reversed(list(self.tables)), strict=True
        ):
            total = total + table[positions % length]
            positions = positions // length
        return total


class Neighbours(Module):
    """Sums up the known tokens next to positions: a convolution of 3 along each axis.

    A transformer that reads tokens in many orders is slow to learn that neighbours matter most.

    Args:
        dim_token: width of a token.
        dim: width of the result.
        axis_lengths: lengths of the axes, the last one running fastest.
    """

    def __init__(self, dim_token: int, dim: int, axis_lengths: tuple[int, ...]):
        super().__init__()
        ways = [way for way in product((-1, 0, 1), repeat=len(axis_lengths)) if any(way)]
        places = torch.cartesian_prod(*map(torch.arange, axis_lengths)).view(-1, len(axis_lengths))
        around = places.unsqueeze(1) + torch.tensor(ways)
        lengths = torch.tensor(axis_lengths)
        inside = ((around >= 0) & (around < lengths)).all(dim=-1)
        strides = torch.tensor([prod(axis_lengths[i + 1 :]) for i in range(len(axis_lengths))])
        index = (around * strides).sum(dim=-1).masked_fill(~inside, len(places))
        self.register_buffer("index", index, persistent=False)  # (n k); n for none
        # the last entry of a token says that it is known
        self.proj = nn.Linear(len(ways) * (dim_token + 1), dim)

    def forward(self, seq: Tensor, rank: Tensor, positions: Tensor, limit: Tensor) -> Tensor:
        """What is around `positions` (b m), (b m dim), of tokens (b n d) with ranks below a limit.

        Args:
            rank: of each token, (b n).
            limit: of each position, (b m).
        """
        index = self.index[positions].clamp(max=seq.shape[1])
        rows = torch.arange(len(seq), device=seq.device)[:, None, None]
        nowhere = 2**31
        known = F.pad(rank, (0, 1), value=nowhere)[rows, index] < limit.unsqueeze(-1)
        tokens = F.pad(F.pad(seq, (0, 1), value=1.0), (0, 0, 0, 1))
        found = tokens[rows, index] * known.unsqueeze(-1)
        return self.proj(found.flatten(2).to(self.proj.weight.dtype))


class Recent(Module):
    """A linear map of the last tokens before each position, zeros before the first one.

    What a linear autoregressive process reads. A transformer takes long to learn it from few data.
    Entries count up to `LIMIT`, so that what is drawn, and read again, cannot grow without bounds.

    Args:
        dim_token: width of a token.
        dim: width of the result.
        count: of tokens.
    """

    LIMIT = 4.0  # standard deviations: tokens are normalised

    def __init__(self, dim_token: int, dim: int, count: int):
        super().__init__()
        self.count = count
        self.proj = nn.Linear(count * dim_token, dim, bias=False)

    def forward(self, seq: Tensor) -> Tensor:
        """The result at each position of sequences (b n d): (b n dim)."""
        padded = F.pad(seq.clamp(-self.LIMIT, self.LIMIT), (0, 0, self.count, 0))
        windows = padded.unfold(1, self.count, 1)[:, : seq.shape[1]]  # (b n d k)
        return self.proj(windows.flatten(2).to(self.proj.weight.dtype))

    def after(self, seq: Tensor) -> Tensor:
        """The result at the position after sequences (b n d), (b dim); their ends are enough."""
        last = seq[:, -self.count :].clamp(-self.LIMIT, self.LIMIT)
        last = F.pad(last, (0, 0, self.count - last.shape[1], 0))
        return self.proj(last.transpose(1, 2).flatten(1).to(self.proj.weight.dtype))


def positions_of(seq: Tensor) -> Tensor:
    """The positions (n,) of tokens (b n d)."""
    return torch.arange(seq.shape[1], device=seq.device)
