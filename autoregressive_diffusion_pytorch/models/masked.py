"""Masked autoregression: sets of tokens in any order, by a bidirectional transformer.

Li et al. 2024 (https://arxiv.org/abs/2406.11838), section 3.3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..utils.validation import check_share
from .bidirectional import BidirectionalBackbone
from .orders import Order, OrderLike, iterations_of, orders_of
from .positions import AxialPositions, Neighbours, positions_of
from .readings import MaskedReading
from .sequence_model import SequenceModel

UNREAD = 2**30  # the set of padding, which no token reads
FEWEST_ITERATIONS = 8  # by default, for up to 32 tokens
# in training, over the number of masked tokens
LEAST_ITERATIONS, MOST_ITERATIONS = 1 / 4, 2


class MaskedAutoregressive(SequenceModel):
    """A bidirectional transformer over tokens (b n d), and a head that draws each token.

    Sets of tokens are drawn one after the other, in any order: those of a set independently of each
    other, given all sets before (Li et al. 2024, eq. 3).

    In training a part of the tokens is known, and the loss is that of the others, which are masked.
    Li et al. learn to predict all masked tokens from the known ones. Here these are cut into sets
    at random, as a sampling would, and one pass learns all sets, each given those before: the
    transformer reads the tokens themselves, each of which sees its own set and those before, and a
    mask token at each masked position, which sees the sets before and itself.

    Args:
        min_mask_ratio, mask_ratio_std: the share of masked tokens is drawn for each sequence from a
            normal distribution of mean 1 and this std, truncated to [min_mask_ratio, 1]. Li et al.
            have 0.7 and 0.25.
        kwargs: as of `SequenceModel`; `decoder_kwargs` are those of the x-transformers `Encoder`.
    """

    backbone_class = BidirectionalBackbone
    order = "masked"
    draws_any_order = True

    def __init__(
        self, dim: int, *, min_mask_ratio: float = 0.0, mask_ratio_std: float = 0.25, **kwargs: Any
    ):
        check_share(min_mask_ratio=min_mask_ratio)
        if not 0 < mask_ratio_std < math.inf:
            raise ValueError(f"mask_ratio_std must be above 0 and finite, got {mask_ratio_std}")
        super().__init__(dim, **kwargs)
        self.min_mask_ratio, self.mask_ratio_std = min_mask_ratio, mask_ratio_std
        lengths = self.backbone.positions.axis_lengths
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.neighbours = Neighbours(self.dim_input, dim, lengths)
        self.head_positions = AxialPositions(dim, lengths)

    def read(
        self,
        seq: Tensor,
        mask: Tensor | None,
        *,
        order: str | Tensor | None = None,
        num_iterations: int | None = None,
        generator: Generator | None = None,
        **conditions: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        tokens = seq.new_ones(seq.shape[:2], dtype=torch.bool) if mask is None else mask
        lens = tokens.sum(dim=1, keepdim=True)
        if order is None:
            sets = self._draw_sets(tokens, lens)
        else:
            rank = orders_of(tokens, order, generator).argsort(dim=1)
            sets = 1 + iterations_of(rank, lens.squeeze(1), num_iterations)
        sets = sets.masked_fill(~tokens, UNREAD)
        condition = self.embed_conditions(len(seq), **conditions)
        # every token, which sees its own set, and a mask token for it, which sees those before
        positions = positions_of(seq).expand(seq.shape[:2])
        masks = self.mask_token + self.neighbours(seq, sets, positions, sets)
        embeds = torch.cat((self.embed(seq), masks), dim=1)
        seen = torch.cat((sets + 1, sets), dim=1).unsqueeze(2)
        reads = F.pad(sets.unsqueeze(1) < seen, (0, seq.shape[1]))
        condition = self.with_start(condition, len(seq))
        z = self.backbone(embeds, reads, positions.repeat(1, 2), **condition)
        z = z[:, seq.shape[1] :] + self.head_positions(positions)
        return z, tokens & (sets > 0)

    def _draw_sets(self, tokens: Tensor, lens: Tensor) -> Tensor:
        """The sets of tokens (b n) in a training step: 0 is known, and all others are masked."""
        shape, device = lens.shape, tokens.device
        # the truncated normal by its inverse distribution function
        lowest = math.erf((self.min_mask_ratio - 1) / (self.mask_ratio_std * math.sqrt(2)))
        share = (lowest * torch.rand(shape, device=device)).erfinv()
        ratio = 1 + self.mask_ratio_std * math.sqrt(2) * share
        masked = (ratio * lens).ceil().clamp(min=1)
        # as in `iteration_sizes`, of a number of iterations that is log-uniform
        low, high = math.log(LEAST_ITERATIONS), math.log(MOST_ITERATIONS)
        count = masked * torch.empty(shape, device=device).uniform_(low, high).exp()
        rank = orders_of(tokens, "random").argsort(dim=1) - (lens - masked)
        left = (1 - (rank + 1) / masked).clamp(0, 1)
        drawn = (count * left.acos() * 2 / math.pi).ceil().clamp(min=1)
        return torch.where(rank < 0, 0, drawn).long()

    def with_start(self, condition: dict[str, Tensor], batch_size: int) -> dict[str, Tensor]:
        """What the transformer reads beside the tokens, with the start token after a prefix."""
        start = self.start_token.expand(batch_size, 1, -1)
        prefix, mask = condition.get("prefix"), condition.get("prefix_mask")
        own = dict(prefix=start if prefix is None else torch.cat((prefix, start), dim=1))
        if mask is not None:
            own |= dict(prefix_mask=F.pad(mask, (0, 1), value=True))
        return condition | own

    def order_of(
        self, length: int, known: Tensor, order: OrderLike | None, num_iterations: int | None
    ) -> Order:
        order = "random" if order is None else order
        if num_iterations is None:
            num_iterations = max(FEWEST_ITERATIONS, length // 4)
        return Order(length, known, order, num_iterations)

    @property
    def transformer(self) -> Callable:
        return self.backbone.step

    def reading(self, *args: Any) -> MaskedReading:
        return MaskedReading(self, *args)
