"""Orders: which positions are known, and which are drawn in which iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.rng import Generators, rand
from ..utils.validation import as_whole_numbers, check_choice, check_positive_int

NAMES = ("raster", "random")
OrderLike = Literal["raster", "random"] | Tensor | Sequence[int]


class Order:
    """The known positions of sequences, and how the others are drawn.

    Args:
        length: n, positions of a sequence.
        known: the known positions (m k) of m prompts, (1 k) if those of all are the same.
        order: of the others: "raster", "random" (another one for each sequence), or a permutation
            of all n positions, (n,), of which those count that are not known.
        num_iterations: in which they are drawn; by default one in each.
    """

    def __init__(
        self, length: int, known: Tensor, order: OrderLike, num_iterations: int | None = None
    ):
        self.length = length
        self.known = known
        self.order = check_order(order, length)
        count = length - known.shape[1]
        if num_iterations is not None:
            check_positive_int(num_iterations=num_iterations)
        self.sizes = iteration_sizes(count, min(count, num_iterations or count))

    def positions(self, batch_size: int, generator: Generators) -> Tensor:
        """All positions in their order, the known ones first: (b n), or (1 n) of one for all."""
        is_random = isinstance(self.order, str) and self.order == "random"
        rows = batch_size if is_random else len(self.known)
        known = repeated(self.known, rows)
        shape, device = (rows, self.length), known.device
        if is_random:
            rank = rand(shape, generator, device, torch.float64)
        else:
            order = torch.arange(self.length) if isinstance(self.order, str) else self.order
            rank = order.to(device).argsort().double().expand(shape)
        # before all others, in raster order
        first = torch.arange(known.shape[1], device=device) - known.shape[1]
        rank = rank.scatter(1, known, first.double().expand_as(known))
        order = rank.argsort(dim=1)
        return order if rows == 1 else repeated(order, batch_size)


def iteration_sizes(count: int, num_iterations: int) -> list[int]:
    """How many of `count` tokens are drawn in each iteration, at least one.

    The share that is left falls as a cosine (Li et al. 2024, section 3.3): few at first, when
    little is known of an image, and many at the end.
    """
    left, sizes = count, []
    for i in range(1, num_iterations + 1):
        wanted = math.floor(count * math.cos(math.pi / 2 * i / num_iterations))
        stay = max(min(wanted, left - 1), num_iterations - i)
        sizes.append(left - stay)
        left = stay
    return sizes


def iterations_of(rank: Tensor, lens: Tensor, num_iterations: int | None) -> Tensor:
    """The iteration, from 0, in which each token is drawn, (b n); of its rank if that is None.

    Args:
        rank: of each token in the order of its sequence, (b n).
        lens: the number of tokens of each sequence, (b,), without padding, whose ranks are last.
    """
    if num_iterations is None:
        return rank
    drawn = rank.clone()
    for length in lens.unique().tolist():
        sizes = torch.tensor(iteration_sizes(length, min(length, num_iterations)))
        iteration = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(rank)
        rows = lens == length
        drawn[rows] = F.pad(iteration, (0, rank.shape[1] - length), value=length)[rank[rows]]
    return drawn


def orders_of(tokens: Tensor, order: str | Tensor, generator: Generators = None) -> Tensor:
    """The order of the tokens of each of b sequences, (b n); padding comes last.

    Args:
        tokens: True for tokens, False for padding, (b n).
        order: as of `check_order`.
    """
    if isinstance(order, str) and order == "random":
        rank = rand(tokens.shape, generator, tokens.device, torch.float32)
    else:
        rank = torch.arange(tokens.shape[1]) if isinstance(order, str) else order.argsort()
        rank = rank.to(tokens.device).expand(tokens.shape)
    return rank.masked_fill(~tokens, tokens.shape[1]).argsort(dim=1, stable=True)


def check_order(order: OrderLike, length: int) -> str | Tensor:
    """A name, or a permutation of the positions (n,)."""
    if isinstance(order, str):
        check_choice("order", order, NAMES)
        return order
    order = as_whole_numbers("order", order, 0, length - 1)
    if order.shape != (length,) or len(order.unique()) != length:
        raise ValueError(
            f"order must be {' or '.join(map(repr, NAMES))} or a permutation of the {length} "
            f"positions, got {order.tolist()}"
        )
    return order


def repeated(tensor: Tensor, batch_size: int) -> Tensor:
    """(m …) to (b …): each of the m as often as it takes, one after the other."""
    return repeat(tensor, batch_size // len(tensor))


def repeat(tensor: Tensor, times: int) -> Tensor:
    """Each entry `times` times, one after the other."""
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=0)


def repeat_all(tensors: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: repeat(tensor, times) for name, tensor in tensors.items()}
