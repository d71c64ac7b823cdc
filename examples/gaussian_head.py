"""A head in one file: a Gaussian whose mean and scale the network learns.

Use it by its name, with this folder in PYTHONPATH:

    Autoregressive(dim, max_seq_len=16, head="gaussian_head:GaussianHead")
    ardiff train digits --head gaussian_head:GaussianHead
"""

import math

import torch
from torch import nn

from autoregressive_diffusion_pytorch.heads.guidance import mix_conditions
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.utils.rng import randn


class GaussianHead(Head):
    """Draws a token from N(mean(z), scale(z)²), each entry by itself."""

    def __init__(self, dim_token, dim_z, *, width, depth):
        super().__init__(dim_token, dim_z)
        layers = [nn.Linear(dim_z, width), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 2 * dim_token))

    def mean_and_log_scale(self, z):
        mean, log_scale = self.net(z).float().chunk(2, dim=-1)
        return mean, log_scale.clamp(-7, 7)

    def forward(self, tokens, z):
        # per entry, so that the loss does not grow with the width of a token
        return -self.log_prob(tokens, z) / tokens.shape[-1]

    def sample(self, z, *, guidance=(), temperature=1.0, generator=None):
        z, guidance = mix_conditions(z, guidance)
        mean, log_scale = self.mean_and_log_scale(z)
        for other, scale, *_ in guidance:
            scale = torch.as_tensor(scale, dtype=mean.dtype, device=mean.device).unsqueeze(-1)
            mean = torch.lerp(self.mean_and_log_scale(other)[0], mean, scale)
        noise = randn(mean.shape, generator, mean.device, mean.dtype)
        return mean + temperature * log_scale.exp() * noise

    def log_prob(self, tokens, z, *, generator=None):
        mean, log_scale = self.mean_and_log_scale(z)
        squares = ((tokens - mean) / log_scale.exp()).square()
        return -(squares / 2 + log_scale + math.log(2 * math.pi) / 2).sum(dim=-1)
