"""Linear layers in 8-bit integers, for CPUs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import Module

TINY = 1e-30  # of an input of zeros the step must not be 0


class Int8Linear(Module):
    """A linear layer with weights rounded to 8 bits once, and inputs at each call.

    The integers are multiplied exactly. Each output of the weights, and each input vector, has a
    step of its own: its largest absolute entry over 127 (the vector-wise quantization of Dettmers
    et al. 2022, https://arxiv.org/abs/2208.07339, section 3.1). So what comes of a vector does not
    depend on what else is in the batch.

    Args:
        linear: the layer, in single precision on a CPU.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        most = 63 if _saturates() else 127
        steps = weight.abs().amax(dim=1).clamp_min(TINY) / most
        self.register_buffer("integers", (weight / steps.unsqueeze(1)).round().to(torch.int8))
        self.register_buffer("steps", steps)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weights (out in) that the integers stand for, in single precision."""
        return self.integers * self.steps.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (… in) in single precision to (… out)."""
        rows = x.reshape(-1, self.in_features)
        steps = rows.abs().amax(dim=1, keepdim=True).clamp_min_(TINY).div_(127)
        integers = rows.div(steps).round_().to(torch.int8)
        product = torch._int_mm(integers, self.integers.t()) * steps
        if self.bias is None:
            product = product.mul_(self.steps)
        else:
            product = torch.addcmul(self.bias, product, self.steps)
        return product.view(*x.shape[:-1], self.out_features)


@cache
def _saturates() -> bool:
    """Whether products lose what exceeds 16 bits, as on x86 CPUs without VNNI instructions.

    Those add two products of an input, shifted to 0 … 255, with a weight in 16 bits: 7 bits of the
    weights fit.
    """
    most = torch.full((32, 32), 127, dtype=torch.int8)
    return bool((torch._int_mm(most, most) != 32 * 127**2).any())


def quantize_linears(model: Module) -> None:
    """Puts `Int8Linear` in place of all linear layers.

    Of the small ones too, which it makes slower: their sums in single precision would depend on the
    size of the batch, and a last bit of them would move what a later layer rounds by a whole step.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
