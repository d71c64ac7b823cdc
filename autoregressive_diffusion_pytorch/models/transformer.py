"""What the transformers of all models share: layers of x-transformers, and positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from ..utils.modes import checkpoint_gradients, without_jit_warnings
from ..utils.validation import check_positive_int
from .positions import AxialPositions

with without_jit_warnings():
    from x_transformers.x_transformers import Attention, AttentionLayers, FeedForward

# arguments of the layers, and those of the models that set them
RESERVED_DECODER_KWARGS = {
    "dim": "dim",
    "depth": "depth",
    "heads": "heads",
    "attn_dim_head": "dim_head",
    "cross_attend": "cross_attend",
}


class Transformer(Module):
    """Layers of x-transformers, and learned positions.

    Args:
        dim: width of the model.
        max_seq_len: longest sequence, or a tuple of axis lengths for axial positions.
        depth, dim_head, num_heads: of the layers.
        cross_attend: each layer also attends to a memory, which is then needed.
        decoder_kwargs: further arguments of the layers.
    """

    layers: ClassVar[type[AttentionLayers]]

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
            self.decoder = self.layers(dim=dim, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"decoder_kwargs {decoder_kwargs} are refused by the x-transformers "
                f"{self.layers.__name__}: {error}"
            ) from error
        if self.decoder.need_condition:
            raise ValueError(
                f"decoder_kwargs {decoder_kwargs} make a decoder with adaptive norms, which need "
                "an "
                "input of their own that this model does not give"
            )
        self.num_mem_kv = decoder_kwargs.get("attn_num_mem_kv", 0)
        self.arguments: dict[str, Any] = arguments

    def checkpoint_gradients(self) -> None:
        """From now on training keeps only the inputs of the attention and feedforward layers."""
        for module in self.decoder.modules():
            if isinstance(module, (Attention, FeedForward)):
                checkpoint_gradients(module)


def same_outputs(a: Tensor, b: Tensor) -> bool:
    """Whether outputs around 1, in single precision, are the same."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)
