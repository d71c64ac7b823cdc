"""The causal transformer: the x-transformers `Decoder` and its key/value cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.modes import without_jit_warnings
from .transformer import Transformer, same_outputs

with without_jit_warnings():
    from x_transformers import Decoder


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
        return self._map(partial(torch.repeat_interleave, repeats=times, dim=0))

    def every(self, times: int) -> BackboneState:
        """The state of the first of each `times` sequences."""
        return self._map(lambda tensor: tensor[::times])

    def _map(self, function: Callable[[Tensor], Tensor]) -> BackboneState:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        cache = None if self.cache is None else map_cache(function, self.cache)
        return replace(
            self, cache=cache, **{name: function(value) for name, value in tensors.items()}
        )


def map_cache(function: Callable[[Tensor], Tensor], cache: Any) -> Any:
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


class Backbone(Transformer):
    """A causal transformer: one full pass for training, cached steps with the same numbers.

    Args:
        decoder_kwargs: further arguments of the x-transformers `Decoder`. They are probed on a
            small decoder at once: a configuration that lets a position see a later one is refused;
            one whose key/value cache gives other numbers than the full pass is sampled without
            cache (`can_cache` is False); one that ignores the mask of a prefix refuses such masks
            (`can_mask` is False).
        dim, kwargs: as of `Transformer`.
    """

    layers = Decoder

    def __init__(self, dim: int, *, decoder_kwargs: dict | None = None, **kwargs: Any):
        super().__init__(dim, decoder_kwargs=decoder_kwargs, **kwargs)
        self.can_cache, self.can_mask = True, True
        if decoder_kwargs:
            self.can_cache, self.can_mask = _probe(self.arguments, dim)

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None = None,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(b n dim) to (b n dim): the output at a position depends on the inputs up to it.

        Args:
            embeds: the embedded tokens; positions are added here.
            positions: theirs, (b n); by default 0 to n - 1.
            prefix: further embeddings (b p dim), read before them.
            prefix_mask: (b p), False for what is not to be read.
            memory: embeddings (b m dim) for cross-attention.
            memory_mask: (b m), as `prefix_mask`.
        """
        length = embeds.shape[1]
        if positions is None:
            positions = torch.arange(length, device=embeds.device)
        embeds = embeds + self.positions(positions)
        embeds = embeds if prefix is None else torch.cat((prefix, embeds), dim=1)
        state = BackboneState(prefix_mask=prefix_mask, memory=memory, memory_mask=memory_mask)
        inputs = self._decoder_inputs(length, state)
        return self.decoder(embeds, **inputs)[:, -length:]

    def step(
        self,
        embeds: Tensor,
        state: BackboneState | None = None,
        positions: Tensor | None = None,
        *,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, BackboneState]:
        """Reads the next embeddings (b m dim), and returns the output at the last one, (b dim).

        Args:
            positions: theirs, (b m); by default those that follow the last ones.

        The other arguments, as of `forward`, are for the first step.
        """
        if state is None:
            state = BackboneState(prefix_mask=prefix_mask, memory=memory, memory_mask=memory_mask)
        stop = state.length + embeds.shape[1]
        if positions is None:
            positions = torch.arange(state.length, stop, device=embeds.device)
        embeds = embeds + self.positions(positions)
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
        if not same_outputs(full, torch.stack(last, dim=1)):
            raise ValueError(
                "decoder_kwargs make a decoder whose output at a position changes with later "
                "positions"
            )
        # a masked entry must be as none
        first_masked = (torch.arange(length) > 0).expand(2, -1)
        mask = _attention_mask(first_masked, arguments.get("attn_num_mem_kv", 0))
        masked = decoder(embeds, attn_mask=mask, **inputs(2))
        can_mask = same_outputs(masked[:, 1:], decoder(embeds[:, 1:], **inputs(2)))

        try:
            # the first pass reads several at once, as with a prompt, and serves both sequences
            outputs, cache = decoder(embeds[:1, :2], return_hiddens=True, **inputs(1))
            stepped = [outputs.expand(2, -1, -1)]
            cache = map_cache(partial(torch.repeat_interleave, repeats=2, dim=0), cache)
            for i in range(2, length):
                step = dict(cache=cache, return_hiddens=True)
                output, cache = decoder(embeds[:, i : i + 1], **step, **inputs(2))
                stepped.append(output)
        except Exception:  # x-transformers has no cache for some options, and says so in many ways
            return False, can_mask
        return same_outputs(full, torch.cat(stepped, dim=1)), can_mask
