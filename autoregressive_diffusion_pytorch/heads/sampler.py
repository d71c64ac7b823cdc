"""Drawing tokens: a solver, or one evaluation, with guidance at each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from ..utils.modes import compiled, evaluating
from ..utils.rng import Generators, randn
from .guidance import Guidance, check_guidance_interval, check_guidance_scale, guide, mix_conditions
from .head import Head
from .solvers import Noise

Solve = Callable[[Callable[..., Tensor], Noise], Tensor]
Intervals = Sequence[tuple[float, float]]


class Sampler:
    """`sampler(z, guidance=()) -> tokens`, with arguments as of the head's `sample`.

    Args:
        head: to draw with. It has a network `net`; `modulate_level(*sigmas)`, the part of the
            network's modulation that no condition changes; and `denoised(x, sigma, modulation,
            sigma_data, *others)`, an estimate of the token.
        solve: gives a token from `denoise(x, *sigmas)`, which is guided, and from `noise()`.
        num_noises: how often `solve` asks for noise.
    """

    def __init__(
        self,
        head: Head,
        solve: Solve,
        num_noises: int = 1,
        *,
        temperature: float = 1.0,
        generator: Generators = None,
        compile: bool = False,
    ):
        if not 0 <= temperature < inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        self.head = head
        self.modules = list(head.modules())
        self.temperature = temperature
        self.generator = generator
        self.sigma_data = head.scale
        self.solve = solve
        self.num_noises = num_noises
        self.level_modulations: dict[tuple[float, ...], Tensor] = {}  # the first token fills it
        self.compiled = self._compiled() if compile else None

    @torch.no_grad()
    def __call__(self, z: Tensor, guidance: Sequence[Guidance] = ()) -> Tensor:
        guidance = [Guidance(*entry) for entry in guidance]
        dtype = torch.promote_types(z.dtype, torch.float32)
        shape = (*z.shape[:-1], self.head.dim_token)

        def noise() -> Tensor:
            return self.temperature * randn(shape, self.generator, z.device, dtype)

        z, guidance = mix_conditions(z, guidance)
        scales = [_scale(entry, z, dtype) for entry in guidance]
        intervals = [check_guidance_interval(entry.interval) for entry in guidance]
        others = [entry.z for entry in guidance]
        for other in others:
            if other.shape not in (z.shape[-1:], z.shape):
                raise ValueError(
                    f"the z of a guidance must be of shape {tuple(z.shape[-1:])} or "
                    f"{tuple(z.shape)}, got {tuple(other.shape)}"
                )
        with evaluating(self.modules):
            modulations = self.modulations(z, others)
            # a compiled program needs the modulations of all levels before it starts
            if self.compiled is None or not self.level_modulations:
                return self.draw(modulations, scales, intervals, noise)
            # and all noise; and a captured graph writes every result to the same place
            noises = [noise() for _ in range(self.num_noises)]
            return self.compiled(modulations, scales, intervals, noises).clone()

    def draw(
        self, modulations: Tensor, scales: Sequence[Tensor], intervals: Intervals, noise: Noise
    ) -> Tensor:
        """Tokens (… d) of `modulations(z, others)`, with a scale and an interval for each other.

        Nothing is checked, so that torch can trace both, once a call has met all levels.
        """

        def denoise(x: Tensor, sigma: float, *others: float) -> Tensor:
            active = [i for i, (low, high) in enumerate(intervals) if low < sigma <= high]
            rows = modulations
            if len(active) < len(scales):
                rows = modulations[[0, *(i + 1 for i in active)]]
            modulation = self._level_modulation(sigma, *others) + rows
            # for all conditions at once, then guidance in its order
            token, *alternatives = self.head.denoised(
                x, sigma, modulation, self.sigma_data, *others
            )
            for i, alternative in zip(active, alternatives, strict=True):
                token = guide(token, alternative, scales[i], self.sigma_data)
            return token

        tokens = self.solve(denoise, noise)
        return tokens.clamp(-1, 1) if self.head.clamp_during_sampling else tokens

    def _level_modulation(self, *sigmas: float) -> Tensor:
        if sigmas not in self.level_modulations:
            self.level_modulations[sigmas] = self.head.modulate_level(*sigmas)
        return self.level_modulations[sigmas]

    def modulations(self, z: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The modulations by a condition (… dim) and by others: (k … m w)."""
        net = self.head.net
        if not others:
            return net.modulate_z(z).unsqueeze(0)
        # in one product: for few tokens, to read its weights is most of the work
        rows = [given.reshape(-1, z.shape[-1]) for given in (z, *others)]
        parts = net.modulate_z(torch.cat(rows)).split([part.shape[0] for part in rows])
        stacked = torch.stack([part.expand_as(parts[0]) for part in parts])
        return stacked.view(len(rows), *z.shape[:-1], *parts[0].shape[1:])

    def _compiled(self) -> Callable:
        def draw(
            modulations: Tensor,
            scales: Sequence[Tensor],
            intervals: Intervals,
            noises: Sequence[Tensor],
        ) -> Tensor:
            noises = iter(noises)
            return self.draw(modulations, scales, intervals, lambda: next(noises))

        on_cuda = self.head.net.proj_in.bias.device.type == "cuda"
        mode = "reduce-overhead" if on_cuda else None
        return compiled(draw, self.head, fullgraph=True, dynamic=False, mode=mode)


def _scale(guidance: Guidance, z: Tensor, dtype: torch.dtype) -> Tensor:
    # a tensor, not a number: to torch.compile each number would be another program
    scale = check_guidance_scale(guidance.scale).to(z.device, dtype)
    if scale.numel() > 1 and scale.shape != z.shape[:-1]:
        raise ValueError(
            f"the scale of a guidance must be a number or of shape {tuple(z.shape[:-1])}, "
            f"got {tuple(scale.shape)}"
        )
    return scale.reshape(()) if scale.numel() == 1 else scale.unsqueeze(-1)
