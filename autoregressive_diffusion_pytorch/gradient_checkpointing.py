"""Gradient checkpointing: layers compute their inside again in the backward pass, instead of keeping it in memory until then."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint


class _Checkpointed:
    """Put before a layer's class; a wrapper around the layer would change the names of its parameters."""

    def forward(self, *args, **kwargs):
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


def checkpoint_gradients(layer: Module) -> None:
    """From now on the layer keeps only its inputs for the backward pass (Chen et al. 2016, https://arxiv.org/abs/1604.06174).

    The numbers stay the same, random ones too; a training step takes the time of one more forward pass of the layer.
    """
    if not isinstance(layer, _Checkpointed):
        layer.__class__ = _checkpointed(layer.__class__)


@cache
def _checkpointed(cls: type[Module]) -> type[Module]:
    """One class for all layers of a class: what wraps layers by their class finds them all."""
    return type(cls.__name__, (_Checkpointed, cls), {})
