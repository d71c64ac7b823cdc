"""What models of sequences learn from, and score sequences by: the loss and the log-density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..heads.head import Head
from ..utils.modes import evaluating
from ..utils.validation import as_token_mask, check_choice
from .ends import EndHead
from .normalization import Normalization
from .orders import OrderLike, check_order
from .positions import positions_of


class ScoringMixin(ABC):
    """The loss and the log-density of sequences, of what a subclass reads of them."""

    head: Head
    end_head: EndHead | None  # of a model that predicts where sequences end
    normalization: Normalization
    max_seq_len: int
    input_noise: float
    context_drop_prob: float
    draws_any_order: bool

    def forward(
        self,
        seq: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        lens: Tensor | None = None,
        mask: Tensor | None = None,
        noised_seq: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The loss of sequences.

        Args:
            seq: tokens (b n d), n at most `max_seq_len`.
            labels: (b,), from 0 to `num_classes` - 1, of a model with classes.
            cond: vectors (b dim_cond), or sequences of them (b m dim_cond), of a model with
                `dim_cond`.
            cond_mask: (b m), False for vectors that are padding.
            lens: (b,), the number of tokens of each sequence; what follows them is padding, of any
                value, and changes nothing.
            mask: (b n), instead of `lens`: True for tokens, False for the padding after them.
            noised_seq: what the transformer reads instead of `seq`, of the same shape; the tokens
                to predict stay those of `seq`.
            loss_reduction: "mean" over all tokens, or "none" for one loss per token, (b n), 0 for
                padding.
        """
        check_choice("loss_reduction", loss_reduction, ("mean", "none"))
        self.check_tokens("seq", seq)
        read = seq if noised_seq is None else noised_seq
        if read.shape != seq.shape:
            shape = tuple(seq.shape)
            raise ValueError(
                f"noised_seq must have the shape of seq, {shape}, got {tuple(read.shape)}"
            )
        mask = as_token_mask(seq, lens, mask)
        if self.training:
            self.normalization.measure(seq.flatten(0, 1) if mask is None else seq[mask])
        seq, read = self.normalization(seq), self.normalization(read)
        if self.training and self.input_noise > 0:
            like = dict(device=read.device, dtype=read.dtype)
            std = self.input_noise * torch.rand(len(read), 1, 1, **like)
            read = read + std * torch.randn_like(read)
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        ending = None if self.end_head is None else self.end_head.losses
        losses, counted = self._per_token(self.head, ending, seq, read, mask, **conditions)
        return losses.mean() if loss_reduction == "mean" else padded(losses, counted)

    @property
    def has_density(self) -> bool:
        """Whether there is a `log_prob`."""
        return self.head.has_density() and self.normalization.has_density

    @property
    def density(self) -> str:
        """What `log_prob` is, by default."""
        if not self.draws_any_order:
            return "exact, in raster order"
        return "exact, in a random order for each: an unbiased estimate of the mean over orders"

    @torch.no_grad()
    def log_prob(
        self,
        seq: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        lens: Tensor | None = None,
        mask: Tensor | None = None,
        order: OrderLike | None = None,
        num_iterations: int | None = None,
        generator: Generator | None = None,
        **solver_kwargs,
    ) -> Tensor:
        """The log-density in nats of each token given those drawn before it, (b n); 0 for padding.

        The sum over the tokens is the log-density of the sequence, drawn in this order. One pass
        through the transformer serves all of them. In random orders, one for each sequence, it is
        an unbiased estimate of the average over all orders; the log-density of what is drawn in
        random orders is at least that (Hoogeboom et al. 2022, section 2,
        https://arxiv.org/abs/2110.02037).

        Args:
            seq, labels, cond, cond_mask, lens, mask: as of `forward`.
            order: "raster", "random" or a permutation of the positions (n,), in which padding does
                not count. By default that in which the model draws.
            num_iterations: as of `sample`, of a masked model; by default one token in each.
            generator: source of random orders and of the noise of the solver, on any device; by
                default torch's global one.
            solver_kwargs: as of the head's `log_prob`.

        Raises:
            TypeError: the head has no density, or tokens lie on a sphere.
        """
        self.check_tokens("seq", seq)
        if not self.normalization.has_density:
            raise TypeError("tokens on a sphere, of normalize = dict(radius=…), have no density")
        if order is None:
            order = "random" if self.draws_any_order else "raster"
        order = check_order(order, seq.shape[1])
        mask = as_token_mask(seq, lens, mask)
        given = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        given |= dict(order=order, num_iterations=num_iterations, generator=generator)
        if generator is not None:
            solver_kwargs |= dict(generator=generator)
        log_prob = partial(self.head.log_prob, **solver_kwargs)
        ending = None if self.end_head is None else self.end_head.log_prob
        seq = self.normalization(seq)
        with evaluating(list(self.modules())):
            values, counted = self._per_token(log_prob, ending, seq, seq, mask, **given)
        return padded(values - self.normalization.log_volume(), counted)

    def _per_token(
        self,
        function: Callable,
        ending: Callable | None,
        seq: Tensor,
        read: Tensor,
        mask: Tensor | None,
        **conditions,
    ) -> tuple[Tensor, Tensor | None]:
        """`function(tokens, z)`, one number per token, where the transformer reads `read`.

        `ending(z, is_end)` is added, of whether the sequence ends with it. (b n), or (m,) for those
        m tokens alone that count, and which these are, (b n).
        """
        if mask is not None:
            read = read.masked_fill(~mask.unsqueeze(-1), 0)  # a weight of 0 does not undo NaN
        z, counted = self.read(read, mask, **conditions)
        ends = None
        if ending is not None:
            asked, is_end = self._answers(seq, mask)
            ends = padded(ending(z[:, 1:][asked[:, : z.shape[1] - 1]], is_end), asked)
        z, null_z = z[:, : seq.shape[1]], None
        if self.training and self.context_drop_prob > 0:
            null_z = self.no_context(positions_of(z)).to(z.dtype).expand_as(z)
        if counted is not None:
            # only these from here on: others cost nothing, and change no random numbers
            seq, z, null_z, ends = (x if x is None else x[counted] for x in (seq, z, null_z, ends))
        if null_z is not None:
            dropped = torch.rand(z.shape[:-1], device=z.device) < self.context_drop_prob
            z = torch.where(dropped.unsqueeze(-1), null_z, z)
        values = function(seq, z)
        return values if ends is None else values + ends, counted

    def _answers(self, seq: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """After which tokens (b n) a sequence may end or go on, and of those (m,) where it ends."""
        tokens = seq.new_ones(seq.shape[:2], dtype=torch.bool) if mask is None else mask
        asked = tokens & (positions_of(seq) < self.max_seq_len - 1)
        is_end = ~F.pad(tokens[:, 1:], (0, 1))
        return asked, is_end[asked]

    @abstractmethod
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
        """Conditions z (b n dim) of the tokens of `seq` (b n d), and of which tokens a loss is.

        Those are given as a mask (b n), None for all. A model that predicts ends gives one more z
        than there are tokens, unless they are `max_seq_len`.

        Args:
            mask: as of `forward`.
            order, num_iterations, generator: as of `log_prob`; None for the orders of a training.
            conditions: labels and vectors; in training they are dropped with `cond_drop_prob`.
        """


def padded(values: Tensor, counted: Tensor | None) -> Tensor:
    """What `ScoringMixin._per_token` gives, (b n), with 0 for tokens that do not count."""
    if counted is None:
        return values
    return values.new_zeros(counted.shape).masked_scatter(counted, values)
