"""Learned absolute positions."""

from __future__ import annotations

import torch
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

    def forward(self, start: int, stop: int) -> Tensor:
        """The embeddings of positions `start` to `stop`, (n dim)."""
        positions = torch.arange(start, stop, device=self.tables[0].device)
        total = 0
        for length, table in zip(
            reversed(self.axis_lengths), reversed(list(self.tables)), strict=True
        ):
            total = total + table[positions % length]
            positions = positions // length
        return total
