"""The network of the heads: a residual MLP whose norms are modulated by time and condition.

Li et al. 2024 (https://arxiv.org/abs/2406.11838), section 3.2 and appendix "Denoising MLP"; the
modulation is the adaLN-Zero of Peebles & Xie 2023 (https://arxiv.org/abs/2212.09748).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import Module, ModuleList

from ..utils.modes import checkpoint_gradients


class SinusoidalEmbedding(Module):
    """Sines and cosines of a time at geometrically spaced frequencies: (…) -> (… dim).

    They fall from `fastest`, in radians per unit of time, by four orders of magnitude. By default
    they are those of the usual embedding of 1,000 discrete timesteps, for times of order 1. They
    are computed anew in the precision of the times: a buffer would be rounded with the weights, and
    an angle of 1,000 rounded to bfloat16 is noise.
    """

    def __init__(self, dim: int, fastest: float = 1000):
        super().__init__()
        self.half = dim // 2
        self.fastest = fastest

    def forward(self, times: Tensor) -> Tensor:
        steps = torch.arange(self.half, device=times.device, dtype=times.dtype)
        speeds = self.fastest * torch.exp(-math.log(10_000) * (steps / self.half))
        angles = times.unsqueeze(-1) * speeds
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class ResidualBlock(Module):
    """`x + gate · MLP(norm(x) · scale + shift)`, the modulation given from outside."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.norm(x), scale)))


class MLP(Module):
    """A residual MLP over one noised token, modulated by its time and its condition z.

    The modulation is the sum of a part that depends on the time alone, which a sampler computes
    once per schedule, and a part that depends on z alone, computed once per token. So a step of a
    sampler costs only what reads the noised token: `forward` is `denoise(noised, modulate(times,
    z))`. All blocks share one modulation.

    Args:
        dim_z: width of the condition.
        dim_token: width of a token.
        depth: number of residual blocks.
        width: width of the residual stream.
        dropout: dropout inside the blocks while training.
        num_times: how many times modulate beside z: 0, 1 or 2.
        fastest: as of `SinusoidalEmbedding`.
        dim_input: width of what is read, by default that of a token.
    """

    NUM_TIME_FEATURES = 256
    NUM_MODULATIONS = 5  # shift, scale and gate of the blocks, shift and scale of the last norm

    def __init__(
        self,
        dim_z: int,
        dim_token: int,
        depth: int = 3,
        width: int = 1024,
        dropout: float = 0.0,
        num_times: int = 1,
        fastest: float = 1000,
        dim_input: int | None = None,
    ):
        super().__init__()
        features, modulations = self.NUM_TIME_FEATURES, self.NUM_MODULATIONS * width
        self.num_times = num_times
        if num_times > 0:
            self.time_features = SinusoidalEmbedding(features // num_times, fastest)
            self.time_modulation = nn.Sequential(
                nn.Linear(features, features), nn.SiLU(), nn.Linear(features, modulations)
            )
        self.cond_modulation = nn.Sequential(
            nn.Linear(dim_z, width), nn.SiLU(), nn.Linear(width, modulations)
        )
        self.proj_in = nn.Linear(dim_input or dim_token, width)
        self.blocks = ModuleList([ResidualBlock(width, dropout) for _ in range(depth)])
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, dim_token)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # every block starts as the identity, the network as zero
        if num_times > 0:
            nn.init.zeros_(self.time_modulation[-1].weight)
            # at first it hears of the first time alone
            nn.init.zeros_(self.time_modulation[0].weight[:, features // num_times :])
        nn.init.zeros_(self.cond_modulation[-1].weight)
        nn.init.zeros_(self.proj_out.weight)
        with torch.no_grad():  # scales start at one
            self.cond_modulation[-1].bias.view(self.NUM_MODULATIONS, width)[[1, 4]] = 1

    def checkpoint_gradients(self) -> None:
        """From now on training keeps only the inputs of the blocks."""
        for block in self.blocks:
            checkpoint_gradients(block)

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_in.bias.dtype  # not of weights, which may be 8-bit integers

    def forward(self, noised: Tensor, *, times: Tensor, z: Tensor) -> Tensor:
        """`noised` (… d), `times` (…) and `z` (… dim_z), which broadcast, to (… d)."""
        return self.denoise(noised, self.modulate(times, z))

    def modulate(self, times: Tensor, z: Tensor) -> Tensor:
        """The modulation by `times` (…) and `z` (… dim_z), which broadcast: (… modulations w)."""
        return self.modulate_time(times) + self.modulate_z(z)

    def modulate_time(self, *times: Tensor) -> Tensor:
        """The part of the modulation by `num_times` times (…): (… modulations width)."""
        features = self.embed_times(*times).to(self.dtype)
        return self.time_modulation(features).unflatten(-1, (self.NUM_MODULATIONS, -1))

    def embed_times(self, *times: Tensor) -> Tensor:
        """The features of `num_times` times (…): (… features)."""
        # rounded first: not every device has double precision
        dtype = torch.promote_types(self.dtype, torch.float32)
        times = torch.stack([time.to(dtype) for time in times], dim=-1)
        return self.time_features(times.to(self.proj_in.bias.device)).flatten(-2)

    def modulate_z(self, z: Tensor) -> Tensor:
        """The part of the modulation by `z` (… dim_z): (… modulations width)."""
        return self.cond_modulation(z.to(self.dtype)).unflatten(-1, (self.NUM_MODULATIONS, -1))

    def denoise(self, noised: Tensor, modulation: Tensor) -> Tensor:
        """`noised` (… d) under a `modulation` (… modulations width), to (… d)."""
        shift, scale, gate, last_shift, last_scale = modulation.unbind(dim=-2)
        x = self.proj_in(noised.to(self.dtype))
        for block in self.blocks:
            x = block(x, shift, scale, gate)
        return self.proj_out(torch.addcmul(last_shift, self.norm_out(x), last_scale))
