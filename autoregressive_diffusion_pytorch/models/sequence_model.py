"""What models of sequences share: a transformer gives conditions, a head draws tokens from them.

Li et al. 2024, "Autoregressive Image Generation without Vector Quantization"
(https://arxiv.org/abs/2406.11838). `models/sampling.py` draws sequences.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn import Module

from ..heads.head import Head, check_head_kwargs, head_class, head_name
from ..utils.modes import evaluating
from ..utils.validation import as_token_mask, check_choice, check_positive_int, check_share
from .conditioning import Conditioning
from .ends import EndHead
from .hub import Pretrained, without_sampling_of_1_0
from .normalization import Normalize, normalization_of
from .orders import OrderLike, check_order
from .positions import AxialPositions, positions_of
from .sampling import GenerationMixin


class SequenceModel(Module, Pretrained, GenerationMixin):
    """A transformer over tokens (b n d), and a head that draws each token.

    Args:
        dim: width of the transformer, and of the condition z that it gives the head.
        head: a name in `HEADS`, such as "flow", a subclass of `Head`, or "module:Class".
        head_kwargs: arguments of the head.
        max_seq_len: longest sequence, in tokens; or a tuple of axis lengths (rows and columns, say)
            for axial positions.
        depth, dim_head, heads: layers, width and number of attention heads of the transformer.
        mlp_depth, mlp_width: blocks and width of the head's network; the width is `dim` by default.
        mlp_kwargs: further arguments of the head's network.
        dim_input: width d of a token, `dim` by default.
        normalize: how tokens come to unit scale: True measures the mean and standard deviation of
            each channel on the first batch, `dict(mean=…, scale=…)` gives them, for each channel or
            one for all, and False takes tokens as they are. `dict(radius=…)` is of tokens on a
            sphere around 0, to which drawn ones are projected (see `Sphere`). Samples and
            log-densities are those of the data.
        num_classes: number of labels to condition on, none by default.
        dim_cond: width of vectors to condition on, none by default. They are best of unit variance,
            and get no positional encoding.
        num_cond_tokens: learned embeddings of each label, read before the tokens.
        cross_attend: vectors are read by cross-attention, and not before the tokens.
        cond_drop_prob: condition dropout: share of the sequences in training that get the null
            condition instead of labels and vectors; guidance needs some.
        context_drop_prob: share of the tokens in training, at least 0 and below 1, whose z is
            replaced by a null condition that knows the token's position alone; `context_guidance`
            of `sample` needs some.
        decoder_kwargs: further arguments of the transformer of x-transformers.
    """

    backbone_class: ClassVar[type[Module]]  # the transformer
    preset: ClassVar[str | None] = None  # the head of a subclass for one head

    def __init__(
        self,
        dim: int,
        *,
        head: str | type[Head],
        head_kwargs: dict | None = None,
        max_seq_len: int | tuple[int, ...],
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 8,
        mlp_depth: int = 3,
        mlp_width: int | None = None,
        mlp_kwargs: dict | None = None,
        dim_input: int | None = None,
        normalize: Normalize = True,
        num_classes: int | None = None,
        dim_cond: int | None = None,
        num_cond_tokens: int = 4,
        cross_attend: bool = False,
        cond_drop_prob: float = 0.1,
        context_drop_prob: float = 0.0,
        decoder_kwargs: dict | None = None,
    ):
        super().__init__()
        dim_input = dim if dim_input is None else dim_input
        width = dim if mlp_width is None else mlp_width
        check_positive_int(dim=dim, depth=depth, dim_head=dim_head, heads=heads)
        check_positive_int(mlp_depth=mlp_depth, mlp_width=width, dim_input=dim_input)
        check_share(context_drop_prob=context_drop_prob)
        check_head_kwargs(head_kwargs or {})
        self.dim_input = dim_input
        self.normalization = normalization_of(dim_input, normalize)
        sizes = dict(depth=depth, dim_head=dim_head, num_heads=heads)
        options = dict(cross_attend=cross_attend, decoder_kwargs=decoder_kwargs)
        self.backbone = self.backbone_class(dim, max_seq_len=max_seq_len, **sizes, **options)
        self.max_seq_len = self.backbone.max_seq_len
        self.end_head: EndHead | None = None
        self.start_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.proj_in = nn.Linear(dim_input, dim)
        self.conditioning = Conditioning(
            dim,
            num_classes=num_classes,
            dim_cond=dim_cond,
            num_cond_tokens=num_cond_tokens,
            cross_attend=cross_attend,
            cond_drop_prob=cond_drop_prob,
        )
        self.context_drop_prob = context_drop_prob
        if context_drop_prob > 0:
            self.no_context = AxialPositions(dim, self.backbone.positions.axis_lengths)
        network = dict(width=width, depth=mlp_depth) | (mlp_kwargs or {})
        self.head = head_class(head)(dim_input, dim, **network, **(head_kwargs or {}))

    @classmethod
    def head_argument(cls) -> str:
        """The argument that holds those of the head."""
        return "head_kwargs" if cls.preset is None else f"{cls.preset}_kwargs"

    def metrics(self) -> dict[str, Tensor]:
        """Numbers of the last loss for the log of a training, those of the head."""
        own = {} if self.end_head is None else dict(end_loss=self.end_head.loss)
        return self.head.metrics() | own

    def set_progress(self, share: float) -> None:
        """How much of its training is over, from 0 to 1; a `Trainer` says so before each step."""

    def checkpoint_gradients(self) -> None:
        """From now on training keeps only the inputs of the transformer's and the head's layers."""
        self.backbone.checkpoint_gradients()
        self.head.checkpoint_gradients()

    def _resolved_arguments(self) -> dict[str, Any]:
        head = dict(head=head_name(type(self.head))) if self.preset is None else {}
        return head | {
            self.head_argument(): self.head.config,
            "normalize": self.normalization.argument,
        }

    @classmethod
    def _upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if not cls._has_own_constructor():
            arguments = dict(normalize=False) | arguments  # a saved model names all its arguments
        return without_sampling_of_1_0(arguments, cls.head_argument())

    def measure(self, seq: Tensor, *, lens=None, mask: Tensor | None = None, **_) -> None:
        """Measures the scale of tokens on sequences, given as in `forward`."""
        mask = as_token_mask(seq, lens, mask)
        tokens = seq.flatten(0, 1) if mask is None else seq[mask]
        self.normalization.measure(tokens)
        self.head.measure(self.normalization(tokens))
        if self.end_head is not None:
            self.end_head.measure(self._answers(seq, mask)[1])

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
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        ending = None if self.end_head is None else self.end_head.losses
        losses, counted = self._per_token(self.head, ending, seq, read, mask, **conditions)
        return losses.mean() if loss_reduction == "mean" else padded(losses, counted)

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

    def embed_conditions(self, batch_size: int, **conditions: Tensor | None) -> dict[str, Tensor]:
        """What the transformer reads of labels and vectors, beside the tokens of a training."""
        conditions = self.conditioning.check(**conditions)
        for name, given in conditions.items():
            if len(given) != batch_size:
                raise ValueError(
                    f"{name} must be given for each of the {batch_size} sequences, got {len(given)}"
                )
        dropped = self.conditioning.draw_dropped(batch_size)
        return self.conditioning(**conditions, dropped=dropped)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (b n dim) of tokens (b n d)."""
        return self.proj_in(tokens.to(self.proj_in.weight.dtype))

    def check_tokens(
        self, name: str, tokens: Tensor, shortest: int = 1, longest: int | None = None
    ) -> None:
        """Whether tokens are real numbers of shape (b n d)."""
        longest = self.max_seq_len if longest is None else longest
        if not tokens.is_floating_point():
            raise TypeError(f"{name} must hold real numbers, got {tokens.dtype}")
        shape = tuple(tokens.shape)
        fits = len(shape) == 3 and shape[0] >= 1 and shortest <= shape[1] <= longest
        if not fits or shape[2] != self.dim_input:
            raise ValueError(
                f"{name} must be of shape (b n {self.dim_input}) with b >= 1 and "
                f"{shortest} <= n <= {longest}, got {shape}"
            )


def padded(values: Tensor, counted: Tensor | None) -> Tensor:
    """What `SequenceModel._per_token` gives, (b n), with 0 for tokens that do not count."""
    if counted is None:
        return values
    return values.new_zeros(counted.shape).masked_scatter(counted, values)
