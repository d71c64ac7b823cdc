"""What models of sequences share: a transformer gives conditions, a head draws tokens from them.

Li et al. 2024, "Autoregressive Image Generation without Vector Quantization"
(https://arxiv.org/abs/2406.11838). `models/scoring.py` has the loss and the log-density,
`models/sampling.py` draws sequences.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Module

from ..heads.head import Head, check_head_kwargs, head_class, head_name
from ..utils.validation import as_token_mask, check_positive_int, check_share
from .conditioning import Conditioning
from .ends import EndHead
from .hub import Pretrained, without_sampling_of_1_0
from .normalization import Normalize, normalization_of
from .positions import AxialPositions
from .sampling import GenerationMixin
from .scoring import ScoringMixin


class SequenceModel(ScoringMixin, Module, Pretrained, GenerationMixin):
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
        input_noise: in training, the transformer reads tokens with noise, whose std is drawn for
            each sequence from U(0, input_noise), in units of the normalised tokens: so it learns to
            go on from its own, imperfect ones.
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
        input_noise: float = 0.0,
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
        check_share(context_drop_prob=context_drop_prob, input_noise=input_noise)
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
        self.input_noise = input_noise
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
        self.check_tokens("seq", seq)
        mask = as_token_mask(seq, lens, mask)
        tokens = seq.flatten(0, 1) if mask is None else seq[mask]
        self.normalization.measure(tokens)
        self.head.measure(self.normalization(tokens))
        if self.end_head is not None:
            self.end_head.measure(self._answers(seq, mask)[1])

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
        return self.proj_in(tokens.to(self.start_token.dtype))

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
