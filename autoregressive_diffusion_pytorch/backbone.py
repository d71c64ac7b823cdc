"""The causal transformer: the x-transformers `Decoder`, its key/value cache and learned positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module, ParameterList
from x_transformers import Decoder
from x_transformers.x_transformers import Attention, FeedForward

from autoregressive_diffusion_pytorch.checks import check_positive_int
from autoregressive_diffusion_pytorch.gradient_checkpointing import checkpoint_gradients

# arguments of the Decoder that the models have arguments of their own for
RESERVED_DECODER_KWARGS = {
    "dim": "dim",
    "depth": "depth",
    "heads": "heads",
    "attn_dim_head": "dim_head",
    "cross_attend": "cross_attend",
}


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

    length: int = 0  # in tokens, what is read before them not counted
    cache: Any = None  # keys and values, of x-transformers
    embeds: Tensor | None = None  # everything read so far, for decoders that cannot be cached
    prefix_mask: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None

    def repeat(self, times: int) -> State:
        """The state of each sequence `times` times, one after the other: for several continuations of one beginning."""
        repeated = partial(torch.repeat_interleave, repeats=times, dim=0)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        cache = None if self.cache is None else _map_cache(repeated, self.cache)
        return replace(self, cache=cache, **{name: repeated(value) for name, value in tensors.items()})


def _map_cache(function: Callable[[Tensor], Tensor], cache: Any) -> Any:
    """A function of all that x-transformers' cache holds for the next step."""
    layers = []
    for layer in cache.attn_intermediates:
        kept = dict(cached_kv=tuple(part if part is None else function(part) for part in layer.cached_kv))
        if layer.hybrid_hidden is not None:
            kept["hybrid_hidden"] = function(layer.hybrid_hidden)
        layers.append(replace(layer, **kept))
    return replace(cache, attn_intermediates=layers)


class Backbone(Module):
    """A causal transformer over embeddings: one full pass for training, one step for sampling, with the same numbers.

    Args:
        dim: width of the model.
        max_seq_len: longest sequence, or a tuple of axis lengths for axial positions.
        depth, dim_head, heads: of the `Decoder`.
        cross_attend: each layer also attends to a context, which is then needed.
        decoder_kwargs: further arguments of the x-transformers `Decoder`. They are tried out on a small decoder at once: a
            configuration that lets a position see a later one is refused, one whose key/value cache would give other numbers
            than the full pass is sampled without cache (`can_cache` tells), and one that sees through the mask of a prefix takes
            none (`can_mask` tells).
    """

    def __init__(
        self,
        dim: int,
        *,
        max_seq_len: int | tuple[int, ...],
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 8,
        cross_attend: bool = False,
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

        arguments = dict(depth=depth, heads=heads, attn_dim_head=dim_head, cross_attend=cross_attend, **decoder_kwargs)
        if cross_attend:
            # a window is for the tokens: x-transformers would lay it over the context too
            arguments.setdefault("cross_attn_max_attend_past", None)
        try:
            self.decoder = Decoder(dim=dim, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"decoder_kwargs {decoder_kwargs} are refused by the x-transformers Decoder: {error}") from error
        if self.decoder.need_condition:
            raise ValueError(
                f"decoder_kwargs {decoder_kwargs} make a decoder with adaptive norms, which need an input of their own that this "
                "model does not give"
            )
        self.num_mem_kv = decoder_kwargs.get("attn_num_mem_kv", 0)
        self.can_cache, self.can_mask = _try_out(arguments, dim) if decoder_kwargs else (True, True)

    def checkpoint_gradients(self) -> None:
        """From now on training keeps only the inputs of the attention and feedforward layers."""
        for module in self.decoder.modules():
            if isinstance(module, (Attention, FeedForward)):
                checkpoint_gradients(module)

    def forward(
        self,
        embeds: Tensor,
        *,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """(b n dim) to (b n dim); the output at a position depends on the inputs up to and including it.

        Args:
            embeds: the embedded tokens; positions are added here.
            prefix: further embeddings (b p dim), read before them.
            prefix_mask: (b p), False for what is not to be read.
            context: embeddings (b m dim) for cross-attention.
            context_mask: (b m), as `prefix_mask`.
        """
        length = embeds.shape[1]
        embeds = embeds + self.positions(0, length)
        embeds = embeds if prefix is None else torch.cat((prefix, embeds), dim=1)
        inputs = self._decoder_inputs(length, State(prefix_mask=prefix_mask, context=context, context_mask=context_mask))
        return self.decoder(embeds, **inputs)[:, -length:]

    def step(
        self,
        embeds: Tensor,
        state: State | None = None,
        *,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Reads the next embeddings (b m dim) of a sequence and returns the output at the last one, (b dim).

        The other arguments, as of `forward`, are for the first step.
        """
        if state is None:
            state = State(prefix_mask=prefix_mask, context=context, context_mask=context_mask)
        stop = state.length + embeds.shape[1]
        embeds = embeds + self.positions(state.length, stop)
        embeds = embeds if prefix is None else torch.cat((prefix, embeds), dim=1)
        inputs = self._decoder_inputs(stop, state)
        if self.can_cache:
            # with a cache the Decoder reads as many of the last inputs as `cache_age` says, and counts on from its length
            outputs, cache = self.decoder(embeds, cache=state.cache, cache_age=embeds.shape[1], return_hiddens=True, **inputs)
            return outputs[:, -1], replace(state, length=stop, cache=cache)
        embeds = embeds if state.embeds is None else torch.cat((state.embeds, embeds), dim=1)
        return self.decoder(embeds, **inputs)[:, -1], replace(state, length=stop, embeds=embeds)

    def _decoder_inputs(self, length: int, state: State) -> dict[str, Tensor]:
        """What the Decoder is told beside the embeddings, for `length` tokens behind a prefix."""
        inputs = dict(context=state.context, context_mask=state.context_mask)
        if state.prefix_mask is not None:
            if not self.can_mask:
                raise ValueError(
                    "decoder_kwargs make a decoder that sees through the mask of a prefix: with them, sequences of vectors "
                    "(b m dim_cond) need cross_attend = True"
                )
            tokens = state.prefix_mask.new_ones(len(state.prefix_mask), length)
            mask = torch.cat((state.prefix_mask, tokens), dim=1)
            if state.cache is None:
                inputs["attn_mask"] = _attention_mask(mask, self.num_mem_kv)
            else:
                inputs["self_attn_kv_mask"] = mask
        return {name: value for name, value in inputs.items() if value is not None}


def _attention_mask(mask: Tensor, num_mem_kv: int) -> Tensor:
    """What each position of a full pass may see: those of `mask` (b n) and memory keys, which come first, (b 1 n m).

    And itself: the Decoder gives one that sees nothing the mean over all, later ones too, and in double precision NaN.
    """
    mask = mask[:, None, None, :] | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return F.pad(mask, (num_mem_kv, 0), value=True)


@torch.no_grad()
def _try_out(arguments: dict, dim: int, length: int = 6, narrow: int = 32) -> tuple[bool, bool]:
    """Whether a decoder of these arguments gives the same numbers with its cache as without; whether a masked entry is as none.

    Tried on a decoder that is narrower than `dim` where its arguments fit any width, its parameters moved away from initial values
    that would hide a part of it (gates and layer scales that start at zero).

    Raises:
        ValueError: if the decoder fails, or is not causal.
    """

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=0, atol=1e-4)  # of outputs around 1, in single precision

    def inputs(batch_size: int) -> dict[str, Tensor]:
        if not decoder.cross_attend:
            return {}
        # longer than the sequence, the same at each call
        context = torch.randn(2 * length, narrow, generator=torch.Generator().manual_seed(0))
        return dict(context=context.expand(batch_size, -1, -1))

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            decoder = Decoder(dim=narrow, **arguments)
            decoder(torch.randn(1, length, narrow), **inputs(1))
        except Exception:  # an argument that fits only the real width, such as a module
            narrow = dim
            decoder = Decoder(dim=dim, **arguments)
        decoder = decoder.float().eval()
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        embeds = torch.randn(2, length, narrow, dtype=torch.float32)
        embeds[1, :2] = embeds[0, :2]

        try:
            full = decoder(embeds, **inputs(2))
            prefixes = torch.stack([decoder(embeds[:, : i + 1], **inputs(2))[:, -1] for i in range(length)], dim=1)
        except Exception as error:
            raise ValueError(f"decoder_kwargs make a decoder that fails on sequences of 1 to {length} tokens: {error}") from error
        if not same(full, prefixes):
            raise ValueError("decoder_kwargs make a decoder whose output at a position changes with later positions")
        # a masked entry must be as none
        mask = _attention_mask((torch.arange(length) > 0).expand(2, -1), arguments.get("attn_num_mem_kv", 0))
        masked = decoder(embeds, attn_mask=mask, **inputs(2))
        can_mask = same(masked[:, 1:], decoder(embeds[:, 1:], **inputs(2)))

        try:
            # the first pass reads several at once, as with a prompt, and serves both sequences
            outputs, cache = decoder(embeds[:1, :2], return_hiddens=True, **inputs(1))
            stepped = [outputs.expand(2, -1, -1)]
            cache = _map_cache(partial(torch.repeat_interleave, repeats=2, dim=0), cache)
            for i in range(2, length):
                output, cache = decoder(embeds[:, i : i + 1], cache=cache, return_hiddens=True, **inputs(2))
                stepped.append(output)
        except Exception:  # x-transformers has no cache for some of its options, and says so in many ways
            return False, can_mask
        return same(full, torch.cat(stepped, dim=1)), can_mask
