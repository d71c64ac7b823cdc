"""The causal transformer: the x-transformers `Decoder` and its key/value cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from ..utils.modes import checkpoint_gradients, without_jit_warnings
from ..utils.validation import check_positive_int
from .positions import AxialPositions

with without_jit_warnings():
    from x_transformers import Decoder
    from x_transformers.x_transformers import Attention, FeedForward

# arguments of the Decoder, and those of the models that set them
RESERVED_DECODER_KWARGS = {
    "dim": "dim",
    "depth": "depth",
    "heads": "heads",
    "attn_dim_head": "dim_head",
    "cross_attend": "cross_attend",
}


@dataclass
class BackboneState:
    """What a `Backbone` remembers of a sequence between steps."""

    length: int = 0  # in tokens, without the prefix
    cache: Any = None  # keys and values, of x-transformers
    embeds: Tensor | None = None  # everything read so far, for decoders that cannot be cached
    prefix_mask: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None

    def repeat(self, times: int) -> BackboneState:
        """The state of each sequence `times` times, one after the other."""
        repeated = partial(torch.repeat_interleave, repeats=times, dim=0)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        cache = None if self.cache is None else _map_cache(repeated, self.cache)
        return replace(
            self, cache=cache, **{name: repeated(value) for name, value in tensors.items()}
        )


def _map_cache(function: Callable[[Tensor], Tensor], cache: Any) -> Any:
    """A function of all that x-transformers' cache holds for the next step."""
    layers = []
    for layer in cache.attn_intermediates:
        kept = dict(
            cached_kv=tuple(part if part is None else function(part) for part in layer.cached_kv)
        )
        if layer.hybrid_hidden is not None:
            kept["hybrid_hidden"] = function(layer.hybrid_hidden)
        layers.append(replace(layer, **kept))
    return replace(cache, attn_intermediates=layers)


class Backbone(Module):
    """A causal transformer: one full pass for training, cached steps with the same numbers.

    Args:
        dim: width of the model.
        max_seq_len: longest sequence, or a tuple of axis lengths for axial positions.
        depth, dim_head, num_heads: of the `Decoder`.
        cross_attend: each layer also attends to a memory, which is then needed.
        decoder_kwargs: further arguments of the x-transformers `Decoder`. They are probed on a
            small decoder at once: a configuration that lets a position see a later one is refused;
            one whose key/value cache gives other numbers than the full pass is sampled without
            cache (`can_cache` is False); one that ignores the mask of a prefix refuses such masks
            (`can_mask` is False).
    """

    def __init__(
        self,
        dim: int,
        *,
        max_seq_len: int | tuple[int, ...],
        depth: int = 8,
        dim_head: int = 64,
        num_heads: int = 8,
        cross_attend: bool = False,
        decoder_kwargs: dict | None = None,
    ):
        super().__init__()
        decoder_kwargs = decoder_kwargs or {}
        for name, own in RESERVED_DECODER_KWARGS.items():
            if name in decoder_kwargs:
                raise ValueError(
                    f"decoder_kwargs must not hold {name!r}: the model's own argument `{own}` sets "
                    "it"
                )

        is_axial = isinstance(max_seq_len, (tuple, list))
        axis_lengths = tuple(max_seq_len) if is_axial else (max_seq_len,)
        if not axis_lengths:
            raise ValueError(
                "max_seq_len must be a whole number of at least 1, or a tuple of such, "
                "got an empty tuple"
            )
        for length in axis_lengths:
            check_positive_int(max_seq_len=length)
        self.max_seq_len = math.prod(axis_lengths)
        self.positions = AxialPositions(dim, axis_lengths)

        arguments = dict(
            depth=depth,
            heads=num_heads,
            attn_dim_head=dim_head,
            cross_attend=cross_attend,
            **decoder_kwargs,
        )
        if num_heads == 1 and decoder_kwargs.get("attn_value_dim_head", dim_head) != dim:
            # x-transformers leaves the projection of a single head's values to `dim` out
            arguments.setdefault("attn_project_out", True)
        if cross_attend:
            # a window is for the tokens: x-transformers would lay it over the memory too
            arguments.setdefault("cross_attn_max_attend_past", None)
        try:
            self.decoder = Decoder(dim=dim, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"decoder_kwargs {decoder_kwargs} are refused by the x-transformers Decoder: "
                f"{error}"
            ) from error
        if self.decoder.need_condition:
            raise ValueError(
                f"decoder_kwargs {decoder_kwargs} make a decoder with adaptive norms, which need "
                "an "
                "input of their own that this model does not give"
            )
        self.num_mem_kv = decoder_kwargs.get("attn_num_mem_kv", 0)
        self.can_cache, self.can_mask = True, True
        if decoder_kwargs:
            self.can_cache, self.can_mask = _probe(arguments, dim)

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
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(b n dim) to (b n dim): the output at a position depends on the inputs up to it.

        Args:
            embeds: the embedded tokens; positions are added here.
            prefix: further embeddings (b p dim), read before them.
            prefix_mask: (b p), False for what is not to be read.
            memory: embeddings (b m dim) for cross-attention.
            memory_mask: (b m), as `prefix_mask`.
        """
        length = embeds.shape[1]
        embeds = embeds + self.positions(0, length)
        embeds = embeds if prefix is None else torch.cat((prefix, embeds), dim=1)
        state = BackboneState(prefix_mask=prefix_mask, memory=memory, memory_mask=memory_mask)
        inputs = self._decoder_inputs(length, state)
        return self.decoder(embeds, **inputs)[:, -length:]

    def step(
        self,
        embeds: Tensor,
        state: BackboneState | None = None,
        *,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, BackboneState]:
        """Reads the next embeddings (b m dim), and returns the output at the last one, (b dim).

        The other arguments, as of `forward`, are for the first step.
        """
        if state is None:
            state = BackboneState(prefix_mask=prefix_mask, memory=memory, memory_mask=memory_mask)
        stop = state.length + embeds.shape[1]
        embeds = embeds + self.positions(state.length, stop)
        embeds = embeds if prefix is None else torch.cat((prefix, embeds), dim=1)
        inputs = self._decoder_inputs(stop, state)
        if self.can_cache:
            # with a cache the Decoder reads the last `cache_age` inputs, and counts on from its
            # length
            inputs |= dict(cache=state.cache, cache_age=embeds.shape[1], return_hiddens=True)
            outputs, cache = self.decoder(embeds, **inputs)
            return outputs[:, -1], replace(state, length=stop, cache=cache)
        embeds = embeds if state.embeds is None else torch.cat((state.embeds, embeds), dim=1)
        outputs = self.decoder(embeds, **inputs)
        return outputs[:, -1], replace(state, length=stop, embeds=embeds)

    def _decoder_inputs(self, length: int, state: BackboneState) -> dict[str, Tensor]:
        """Inputs of the Decoder beside the embeddings, for `length` tokens behind a prefix."""
        inputs = dict(context=state.memory, context_mask=state.memory_mask)
        if state.prefix_mask is not None:
            if not self.can_mask:
                raise ValueError(
                    "decoder_kwargs make a decoder that sees through the mask of a prefix: with "
                    "them, "
                    "sequences of vectors (b m dim_cond) need cross_attend = True"
                )
            tokens = state.prefix_mask.new_ones(len(state.prefix_mask), length)
            mask = torch.cat((state.prefix_mask, tokens), dim=1)
            if state.cache is None:
                inputs["attn_mask"] = _attention_mask(mask, self.num_mem_kv)
            else:
                inputs["self_attn_kv_mask"] = mask
        return {name: value for name, value in inputs.items() if value is not None}


def _attention_mask(mask: Tensor, num_mem_kv: int) -> Tensor:
    """What each position of a full pass may see, (b 1 n m): those of `mask` (b n), and memory keys.

    And itself: the Decoder gives a position that sees nothing the mean over all, later ones too.
    """
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    mask = mask[:, None, None, :] | itself
    return F.pad(mask, (num_mem_kv, 0), value=True)


@torch.no_grad()
def _probe(arguments: dict, dim: int, length: int = 6, probe_dim: int = 32) -> tuple[bool, bool]:
    """Whether a decoder can be cached, and can mask: as if masked entries were not there.

    Probed on a decoder that is narrower than `dim` where its arguments fit any width, with
    parameters moved away from initial values that would hide a part of it (gates and layer scales
    that start at zero).

    Raises:
        ValueError: if the decoder fails, or is not causal.
    """

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=0, atol=1e-4)  # outputs around 1, in single precision

    def inputs(batch_size: int) -> dict[str, Tensor]:
        if not decoder.cross_attend:
            return {}
        # longer than the sequence, the same at each call
        generator = torch.Generator().manual_seed(0)
        memory = torch.randn(2 * length, probe_dim, generator=generator)
        return dict(context=memory.expand(batch_size, -1, -1))

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            decoder = Decoder(dim=probe_dim, **arguments)
            decoder(torch.randn(1, length, probe_dim), **inputs(1))
        except Exception:  # an argument that fits only the real width, such as a module
            probe_dim = dim
            decoder = Decoder(dim=dim, **arguments)
        decoder = decoder.float().eval()
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        embeds = torch.randn(2, length, probe_dim, dtype=torch.float32)
        embeds[1, :2] = embeds[0, :2]

        try:
            full = decoder(embeds, **inputs(2))
            lengths = range(1, length + 1)
            last = [decoder(embeds[:, :stop], **inputs(2))[:, -1] for stop in lengths]
        except Exception as error:
            raise ValueError(
                "decoder_kwargs make a decoder that fails on sequences of 1 to "
                f"{length} tokens: {error}"
            ) from error
        if not same(full, torch.stack(last, dim=1)):
            raise ValueError(
                "decoder_kwargs make a decoder whose output at a position changes with later "
                "positions"
            )
        # a masked entry must be as none
        first_masked = (torch.arange(length) > 0).expand(2, -1)
        mask = _attention_mask(first_masked, arguments.get("attn_num_mem_kv", 0))
        masked = decoder(embeds, attn_mask=mask, **inputs(2))
        can_mask = same(masked[:, 1:], decoder(embeds[:, 1:], **inputs(2)))

        try:
            # the first pass reads several at once, as with a prompt, and serves both sequences
            outputs, cache = decoder(embeds[:1, :2], return_hiddens=True, **inputs(1))
            stepped = [outputs.expand(2, -1, -1)]
            cache = _map_cache(partial(torch.repeat_interleave, repeats=2, dim=0), cache)
            for i in range(2, length):
                step = dict(cache=cache, return_hiddens=True)
                output, cache = decoder(embeds[:, i : i + 1], **step, **inputs(2))
                stepped.append(output)
        except Exception:  # x-transformers has no cache for some options, and says so in many ways
            return False, can_mask
        return same(full, torch.cat(stepped, dim=1)), can_mask
