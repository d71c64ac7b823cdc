"""Autoregression over continuous tokens: a causal transformer conditions a head, token by token.

Li et al. 2024, "Autoregressive Image Generation without Vector Quantization"
(https://arxiv.org/abs/2406.11838), the causal variant: p(x) is the product over i of p(x_i | z_i),
z_i = f(x_1 … x_{i-1}) (their eq. 3 for one token at a time). `models/generation.py` draws
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Module
from tqdm import tqdm

from ..heads.head import NETWORK_ARGUMENTS, Head, head_class, head_name
from ..utils.modes import evaluating
from ..utils.validation import as_token_mask, check_choice, check_positive_int, check_share
from .backbone import Backbone
from .conditioning import Conditioning
from .generation import Generation, repeated
from .hub import Pretrained, without_sampling_of_1_0
from .positions import AxialPositions
from .settings import GenerationSettings, with_sampling_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import SamplingOptions


class Autoregressive(Module, Pretrained):
    """A causal transformer over tokens (b n d), and a head that draws each token.

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
        decoder_kwargs: further arguments of the x-transformers `Decoder`.
    """

    preset: ClassVar[str | None] = None  # the head of a subclass for one head
    generation = GenerationSettings()

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
        for name in NETWORK_ARGUMENTS:
            if name in (head_kwargs or {}):
                own = "mlp_depth, mlp_width and mlp_kwargs set the head's network"
                raise ValueError(f"head_kwargs must not hold {name!r}: {own}")
        self.dim_input = dim_input
        sizes = dict(depth=depth, dim_head=dim_head, num_heads=heads)
        options = dict(cross_attend=cross_attend, decoder_kwargs=decoder_kwargs)
        self.backbone = Backbone(dim, max_seq_len=max_seq_len, **sizes, **options)
        self.max_seq_len = self.backbone.max_seq_len
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
        return self.head.metrics()

    def checkpoint_gradients(self) -> None:
        """From now on training keeps only the inputs of the transformer's and the head's layers."""
        self.backbone.checkpoint_gradients()
        self.head.checkpoint_gradients()

    def _resolved_arguments(self) -> dict[str, Any]:
        head = dict(head=head_name(type(self.head))) if self.preset is None else {}
        return head | {self.head_argument(): self.head.config}

    @classmethod
    def _upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return without_sampling_of_1_0(arguments, cls.head_argument())

    def measure(self, seq: Tensor, *, lens=None, mask: Tensor | None = None, **_) -> None:
        """Lets the head measure the scale of tokens on sequences, given as in `forward`."""
        mask = as_token_mask(seq, lens, mask)
        self.head.measure(seq if mask is None else seq[mask])

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
            mask: (b n), the same as `lens`: True for the tokens, False for the padding after them.
            noised_seq: what the transformer reads instead of `seq`, of the same shape; the tokens
                to predict stay those of `seq`.
            loss_reduction: "mean" over all tokens, or "none" for one loss per token, (b n), 0 for
                padding.
        """
        check_choice("loss_reduction", loss_reduction, ("mean", "none"))
        self.check_tokens("seq", seq)
        if noised_seq is not None and noised_seq.shape != seq.shape:
            raise ValueError(
                f"noised_seq must have the shape of seq, {tuple(seq.shape)}, "
                f"got {tuple(noised_seq.shape)}"
            )
        mask = as_token_mask(seq, lens, mask)
        read = seq if noised_seq is None else noised_seq
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        losses = self._per_token(self.head, seq, read, mask, **conditions)
        return losses.mean() if loss_reduction == "mean" else _padded(losses, mask)

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
        **solver_kwargs,
    ) -> Tensor:
        """The log-density in nats of each token given those before it, (b n); 0 for padding.

        The sum over the tokens is the log-density of the sequence. One pass through the transformer
        serves all of them.

        Args:
            seq, labels, cond, cond_mask, lens, mask: as of `forward`.
            solver_kwargs: as of the head's `log_prob`.

        Raises:
            TypeError: the head has no density.
        """
        self.check_tokens("seq", seq)
        mask = as_token_mask(seq, lens, mask)
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        log_prob = partial(self.head.log_prob, **solver_kwargs)
        with evaluating(list(self.modules())):
            return _padded(self._per_token(log_prob, seq, seq, mask, **conditions), mask)

    def _per_token(
        self, function: Callable, seq: Tensor, read: Tensor, mask: Tensor | None, **conditions
    ) -> Tensor:
        """`function(tokens, z)`, one number per token, where the transformer reads `read`.

        (b n), or with a mask (m,) for the m tokens alone.
        """
        if mask is not None:
            # a token never reads a later one, so padding needs no mask in the transformer; but a
            # weight of 0 does not undo NaN
            read = read.masked_fill(~mask.unsqueeze(-1), 0)
        z = self.conditions(read, **conditions)
        null_z = None
        if self.training and self.context_drop_prob > 0:
            null_z = self.no_context(0, z.shape[1]).to(z.dtype).expand_as(z)
        if mask is not None:
            # only tokens from here on: padding costs nothing, and changes no random numbers
            seq, z, null_z = seq[mask], z[mask], None if null_z is None else null_z[mask]
        if null_z is not None:
            dropped = torch.rand(z.shape[:-1], device=z.device) < self.context_drop_prob
            z = torch.where(dropped.unsqueeze(-1), null_z, z)
        return function(seq, z)

    def conditions(
        self,
        seq: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
    ) -> Tensor:
        """The conditions z (b n dim) of the tokens of `seq` (b n d): z_i reads the tokens before i.

        Labels and vectors as of `forward`; in training they are dropped with `cond_drop_prob`.
        """
        conditions = self.conditioning.check(labels, cond, cond_mask)
        for name, given in conditions.items():
            if len(given) != len(seq):
                raise ValueError(
                    f"{name} must be given for each of the {len(seq)} sequences, got {len(given)}"
                )
        dropped = self.conditioning.draw_dropped(len(seq))
        condition = self.conditioning(**conditions, dropped=dropped)
        embeds = torch.cat((self.start(len(seq)), self.embed(seq[:, :-1])), dim=1)
        return self.backbone(embeds, **condition)

    def start(self, batch_size: int) -> Tensor:
        """The embedding before the first token, (b 1 dim)."""
        return self.start_token.expand(batch_size, 1, -1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (b n dim) of tokens (b n d)."""
        return self.proj_in(tokens.to(self.proj_in.weight.dtype))

    @with_sampling_options
    def sample(
        self,
        batch_size: int | None = None,
        prompt: Tensor | None = None,
        *,
        seq_len: int | None = None,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws sequences, one token after the other.

        Args:
            batch_size: how many sequences; by default as many as there are prompts, labels, vectors
                or guidance scales. Where m prompts, labels or vectors are given, a multiple of m:
                each serves as many sequences, one after the other, that share the work of reading
                it. A single one serves all.
            prompt: first tokens (m n d), n at most `seq_len`: they come back untouched, at the
                start of the result.
            seq_len: tokens to draw, with the prompt; by default `max_seq_len`.
            progress: show a progress bar over the tokens.
            options: as of `SamplingOptions`, and further ones of the head. What is not given is as
                of `generation`, by default as learned.

        Returns:
            Tokens (b n d), the prompt's first, in single precision or the weights', whichever is
            higher.
        """
        tokens = Generation(self, batch_size, prompt, seq_len, options)
        prompt = tokens.prompt
        seq = prompt.new_empty(tokens.batch_size, tokens.seq_len, self.dim_input)
        start = prompt.shape[1]
        seq[:, :start] = repeated(prompt, tokens.batch_size)
        bar = tqdm(tokens, desc="tokens", total=tokens.seq_len - start, disable=not progress)
        for i, token in enumerate(bar, start):
            seq[:, i] = token
        return seq

    @with_sampling_options
    def stream(
        self,
        batch_size: int | None = None,
        prompt: Tensor | None = None,
        *,
        seq_len: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Tensor]:
        """The tokens that `sample` draws after the prompt, each (b d), as soon as it is drawn.

        Arguments as of `sample`.
        """
        return iter(Generation(self, batch_size, prompt, seq_len, options))

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


def _padded(values: Tensor, mask: Tensor | None) -> Tensor:
    """What `Autoregressive._per_token` gives, (b n), with 0 for padding."""
    return values if mask is None else values.new_zeros(mask.shape).masked_scatter(mask, values)
