"""Autoregression by a causal transformer with a key/value cache, in raster or any order.

The causal variant of Li et al. 2024 (https://arxiv.org/abs/2406.11838): p(x) is the product over i
of p(x_i | z_i), z_i = f(x_1 … x_{i-1}) (their eq. 3 for one token at a time).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..utils.validation import check_choice, check_int
from .backbone import Backbone
from .ends import EndHead
from .orders import NAMES, Order, OrderLike, check_order, orders_of
from .positions import AxialPositions, Neighbours, Recent, positions_of
from .readings import RandomReading, RasterReading, Reading, take
from .sequence_model import SequenceModel


class Autoregressive(SequenceModel):
    """A causal transformer over tokens (b n d), and a head that draws each token.

    Args:
        order: "raster", from the first token to the last; or "random": it is trained on random
            orders and draws in any, of all positions or of some (`fill`). Each token is then read
            with its own position and with that of the token to be drawn.
        anneal_to_raster: with `order="random"`, two shares of the training, between which the share
            of random orders falls from 1 to 0; the others are raster (Yu et al. 2024, RAR,
            https://arxiv.org/abs/2411.00776). The trainer tells the model how far it is. Such
            a model is best drawn with `order="raster"`.
        predict_end: learn where sequences end, in raster order. `sample` then draws sequences of
            different lengths, and `log_prob` has the log-probability of going on or ending after
            each token; after `max_seq_len` tokens a sequence ends.
        num_recent: how many of the last tokens, in raster order, z reads by a linear map beside the
            transformer: helps with few data, of which much is linear prediction.
        kwargs: as of `SequenceModel`; `decoder_kwargs` are those of the x-transformers `Decoder`.
    """

    backbone_class = Backbone

    def __init__(
        self,
        dim: int,
        *,
        order: Literal["raster", "random"] = "raster",
        anneal_to_raster: tuple[float, float] | None = None,
        predict_end: bool = False,
        num_recent: int = 0,
        **kwargs: Any,
    ):
        check_choice("order", order, NAMES)
        if anneal_to_raster is not None:
            _check_annealing(anneal_to_raster, order)
        if predict_end and order != "raster":
            raise ValueError(f'predict_end needs order="raster", got order={order!r}')
        check_int("num_recent", num_recent, 0, math.inf)
        if num_recent and order != "raster":
            raise ValueError(f'num_recent needs order="raster", got order={order!r}')
        if num_recent and kwargs.get("normalize", True) is False:
            raise ValueError("num_recent needs tokens of unit scale, got normalize = False")
        super().__init__(dim, **kwargs)
        self.order = order
        if self.draws_any_order:
            # of the token that is read; those of the backbone are of the one to be drawn
            lengths = self.backbone.positions.axis_lengths
            self.own_positions = AxialPositions(dim, lengths)
            self.neighbours = Neighbours(self.dim_input, dim, lengths)
            # a tensor: compiled programs serve all its values
            self.register_buffer("random_share", torch.ones(()), persistent=False)
        self.anneal_to_raster = anneal_to_raster
        if predict_end:
            self.end_head = EndHead(dim)
        self.recent = Recent(self.dim_input, dim, num_recent) if num_recent else None

    def set_progress(self, share: float) -> None:
        if self.anneal_to_raster is not None:
            start, stop = self.anneal_to_raster
            self.random_share.fill_(min(max((stop - share) / (stop - start), 0), 1))

    @property
    def draws_any_order(self) -> bool:
        return self.order == "random"

    def read(
        self,
        seq: Tensor,
        mask: Tensor | None,
        *,
        order: str | Tensor | None = None,
        num_iterations: int | None = None,
        generator: Generator | None = None,
        **conditions: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if num_iterations is not None:
            raise ValueError(
                "num_iterations of a density is of masked models; others draw tokens one by one, "
                f"got {num_iterations}"
            )
        # a token never reads one after it, so padding needs no mask in the transformer
        if not self.draws_any_order:
            self._check_order(order, seq.shape[1])
            if self.end_head is not None and seq.shape[1] < self.max_seq_len:
                seq = F.pad(seq, (0, 0, 0, 1))  # for the condition after the last token
            return self.conditions(seq, **conditions), mask
        tokens = seq.new_ones(seq.shape[:2], dtype=torch.bool) if mask is None else mask
        order = orders_of(tokens, self._check_order(order, seq.shape[1]), generator)
        if self.training and self.anneal_to_raster is not None:
            is_random = torch.rand(len(seq), 1, device=seq.device) < self.random_share
            order = torch.where(is_random, order, positions_of(seq))
        return self.conditions(seq, order=order, **conditions), mask

    def conditions(
        self,
        seq: Tensor,
        *,
        order: Tensor | None = None,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
    ) -> Tensor:
        """The conditions z (b n dim) of the tokens of `seq` (b n d): z_i reads the tokens before i.

        Labels and vectors as of `forward`; in training they are dropped with `cond_drop_prob`.

        Args:
            order: of the positions, (b n), of a model that draws in any order.
        """
        given = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        condition = self.embed_conditions(len(seq), **given)
        start = self.start(len(seq))
        if order is None:
            embeds = torch.cat((start, self.embed(seq[:, :-1])), dim=1)
            z = self.backbone(embeds, **condition)
            return z if self.recent is None else z + self.recent(seq)
        before = order[:, :-1]
        rank = order.argsort(dim=1)
        embeds = self.embed(take(seq, before)) + self.own_positions(before)
        embeds = torch.cat((start, embeds), dim=1) + self.neighbours(
            seq, rank, order, positions_of(seq).expand_as(order)
        )
        return take(self.backbone(embeds, positions=order, **condition), rank)

    def start(self, batch_size: int) -> Tensor:
        """The embedding before the first token, (b 1 dim)."""
        return self.start_token.expand(batch_size, 1, -1)

    def order_of(
        self, length: int, known: Tensor, order: OrderLike | None, num_iterations: int | None
    ) -> Order:
        if not self.draws_any_order and num_iterations is not None:
            raise ValueError(
                "num_iterations is of models that draw in any order; this one was made with "
                f'order="raster", got {num_iterations}'
            )
        return Order(length, known, self._check_order(order, length), num_iterations)

    def _check_order(self, order: OrderLike | None, length: int) -> str | Tensor:
        order = self.order if order is None else check_order(order, length)
        if not self.draws_any_order and order != self.order:
            raise ValueError(
                'order must be "raster" for a model that was made with order="raster", got '
                f"{order!r}"
            )
        return order

    @property
    def transformer(self) -> Callable:
        return self.backbone.step

    def reading(self, *args: Any) -> Reading:
        return (RandomReading if self.draws_any_order else RasterReading)(self, *args)


def _check_annealing(shares: tuple[float, float], order: str) -> None:
    if order != "random":
        raise ValueError(f'anneal_to_raster needs order="random", got order={order!r}')
    start, stop = shares
    if not 0 <= start < stop <= 1:
        raise ValueError(
            f"anneal_to_raster must be two growing shares of the training, 0 to 1, got {shares}"
        )
