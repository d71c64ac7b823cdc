"""The bidirectional transformer of masked models: the x-transformers `Encoder`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.modes import without_jit_warnings
from .transformer import Transformer, same_outputs

with without_jit_warnings():
    from x_transformers import Encoder


@dataclass
class EncoderState:
    """What a `BidirectionalBackbone` remembers of known tokens between steps."""

    keys_values: list[tuple[Tensor, Tensor]]  # of each layer, (b heads c dim)
    mask: Tensor | None  # (b c), False for what is not to be read
    inputs: dict[str, Tensor]  # memory and its mask


class BidirectionalBackbone(Transformer):
    """A transformer whose positions each read those that a mask names, and themselves.

    Args:
        decoder_kwargs: further arguments of the x-transformers `Encoder`. They are probed on a
            small encoder at once: a configuration that lets a position see what it must not read,
            or whose cache gives other numbers than the full pass, is refused.
        dim, kwargs: as of `Transformer`.
    """

    layers = Encoder

    def __init__(self, dim: int, *, decoder_kwargs: dict | None = None, **kwargs: Any):
        super().__init__(dim, decoder_kwargs=decoder_kwargs, **kwargs)
        if decoder_kwargs:
            _probe(self.arguments, dim)

    def forward(
        self,
        embeds: Tensor,
        reads: Tensor,
        positions: Tensor,
        *,
        prefix: Tensor,
        prefix_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(b n dim) to (b n dim).

        Args:
            embeds: the embedded tokens; positions are added here.
            reads: which of them each reads, (b n n) or (1 n n); itself anyway. It should be
                transitive: what is read has read others.
            positions: theirs, (b n).
            prefix: further embeddings (b p dim), which all read.
            prefix_mask: (b p), False for what is not to be read.
            memory: embeddings (b m dim) for cross-attention.
            memory_mask: (b m), as `prefix_mask`.
        """
        embeds = torch.cat((prefix, embeds + self.positions(positions)), dim=1)
        reads = _with_prefix(reads, prefix, prefix_mask)
        mask = self._attention_mask(reads)
        outputs = self.decoder(embeds, attn_mask=mask, **_given(memory, memory_mask))
        return outputs[:, prefix.shape[1] :]

    def step(
        self,
        embeds: Tensor,
        num_known: int,
        positions: Tensor,
        state: EncoderState | None = None,
        *,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, EncoderState]:
        """Reads the next known tokens, and gives the outputs (b q dim) at mask tokens after them.

        Args:
            embeds: of `num_known` tokens, and of q mask tokens: the tokens read each other and what
                is known already, a mask token reads these and itself.
            positions: theirs.

        The other arguments, as of `forward`, are for the first step.
        """
        length = embeds.shape[1]
        reads = (torch.arange(length, device=embeds.device) < num_known).expand(1, length, length)
        embeds = embeds + self.positions(positions)
        if state is None:
            embeds = torch.cat((prefix, embeds), dim=1)
            reads = _with_prefix(reads, prefix, prefix_mask)
            state = EncoderState([], prefix_mask, _given(memory, memory_mask))
            num_known += prefix.shape[1]
            cached = {}
        else:
            cached = dict(self_attn_additional_kv=state.keys_values)
        mask = self._attention_mask(reads)
        if cached:
            size = state.keys_values[0][0].shape[-2]
            before = mask.new_ones(1, size) if state.mask is None else state.mask
            before = before[:, None, None, :].expand(-1, 1, mask.shape[2], -1)
            mask = torch.cat((before, mask.expand(len(before), -1, -1, -1)), dim=-1)
        outputs, hidden = self.decoder(
            embeds, attn_mask=mask, return_hiddens=True, **cached, **state.inputs
        )
        layers = [layer.cached_kv for layer in hidden.attn_intermediates if layer.layer_type == "a"]
        new = [tuple(part[..., :num_known, :] for part in layer) for layer in layers]
        if cached:
            pairs = zip(state.keys_values, new, strict=True)
            new = [tuple(map(_joined, *pair)) for pair in pairs]
        known = state.mask
        if known is not None:
            known = F.pad(known, (0, new[0][0].shape[-2] - known.shape[1]), value=True)
        return outputs[:, num_known:], replace(state, keys_values=new, mask=known)

    def _attention_mask(self, reads: Tensor) -> Tensor:
        """What each position attends to, (b 1 n m): memory keys, what it reads, and itself."""
        itself = torch.eye(reads.shape[1], dtype=torch.bool, device=reads.device)
        return F.pad(reads | itself, (self.num_mem_kv, 0), value=True).unsqueeze(1)


def _joined(before: Tensor, new: Tensor) -> Tensor:
    return torch.cat((before, new), dim=-2)


def _given(memory: Tensor | None, memory_mask: Tensor | None) -> dict[str, Tensor]:
    inputs = dict(context=memory, context_mask=memory_mask)
    return {name: value for name, value in inputs.items() if value is not None}


def _with_prefix(reads: Tensor, prefix: Tensor, prefix_mask: Tensor | None) -> Tensor:
    """What each reads (b n n), with a prefix that all read, itself too: (b p+n p+n)."""
    count, length = prefix.shape[1], reads.shape[1]
    if prefix_mask is None:
        prefix_mask = reads.new_ones(1, count)
    rows = max(len(reads), len(prefix_mask))
    columns = prefix_mask[:, None, :].expand(rows, count + length, -1)
    rest = F.pad(reads.expand(rows, -1, -1), (0, 0, count, 0))  # the prefix reads none of these
    return torch.cat((columns, rest), dim=2)


@torch.no_grad()
def _probe(arguments: dict[str, Any], dim: int, length: int = 6) -> None:
    """Whether an encoder hides what is masked, knows no order of its own, and can be cached.

    Raises:
        ValueError: it does not, or fails.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        backbone = BidirectionalBackbone(dim, max_seq_len=1, depth=1)
        backbone.decoder = Encoder(dim=dim, **arguments)
        backbone.num_mem_kv = arguments.get("attn_num_mem_kv", 0)
        backbone = backbone.float().eval()
        for parameter in backbone.parameters():  # initial values may hide a part of it
            parameter.add_(0.1 * torch.randn_like(parameter))
        embeds, prefix = torch.randn(1, length, dim), torch.randn(1, 2, dim)
        inputs = dict(prefix=prefix)
        if backbone.decoder.cross_attend:
            inputs |= dict(memory=torch.randn(1, 3, dim))
        positions = torch.zeros(1, length, dtype=torch.long)
        # three sets of two, of which each reads itself and those before, and a mask token
        sets = torch.tensor([0, 0, 1, 1, 2, 3])
        reads = (sets <= sets.unsqueeze(1)).unsqueeze(0)
        reads[..., -1] = False

        def outputs(embeds: Tensor) -> Tensor:
            return backbone(embeds, reads, positions, **inputs)

        changed = embeds.clone()
        changed[:, 4] += 1
        try:
            full, other = outputs(embeds), outputs(changed)
            turn = torch.tensor([1, 0, 2, 3, 4, 5])
            turned = outputs(embeds[:, turn])[:, turn]
            state, stop = None, 0
            for known in (2, 2, 1):
                part = torch.cat((embeds[:, stop : stop + known], embeds[:, -1:]), dim=1)
                given = (part, known, positions[:, : known + 1], state)
                last, state = backbone.step(*given, **(inputs if state is None else {}))
                stop += known
        except Exception as error:
            raise ValueError(f"decoder_kwargs make an encoder that fails: {error}") from error
        if not same_outputs(full[:, :4], other[:, :4]):
            raise ValueError(
                "decoder_kwargs make an encoder whose positions see others that are masked"
            )
        if not same_outputs(full, turned):
            raise ValueError(
                "decoder_kwargs make an encoder with positions of its own: a masked model gives it "
                "some tokens, in any order, and has learned positions"
            )
        if not same_outputs(full[:, -1:], last):
            raise ValueError(
                "decoder_kwargs make an encoder whose key/value cache gives other numbers than the "
                "full pass"
            )
