"""The log-density of a sample of an ordinary differential equation: the change of variables.

Along dx/dt = f(x, t) the log-density changes by the negative divergence of f: Chen et al. 2018,
theorem 1 (https://arxiv.org/abs/1806.07366); so does that of a diffusion along its probability
flow: Song et al. 2021, appendix D.2 (https://arxiv.org/abs/2011.13456).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Generator, Tensor

from ..utils.modes import without_jit_warnings
from ..utils.validation import check_above_zero, check_choice, check_generator, check_positive_int

ADAPTIVE_SOLVERS = ("dopri5", "bosh3", "adaptive_heun", "dopri8")
FIXED_STEP_SOLVERS = ("rk4", "midpoint", "heun2", "euler")
DIVERGENCES = ("auto", "exact", "hutchinson")
EXACT_WIDTH = 16  # up to this width "auto" is the exact divergence

JVP_CHUNK = 2**13  # derivatives at once, in numbers per unit of the network's width
MAX_NFE = 5000  # of an adaptive solver: some fifty times what a trained network takes
MAX_NFE_DOUBLE = 10 * MAX_NFE  # in double precision, for tolerances that a single one cannot reach

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass
class FlowToNoise:
    """An equation dx/dt = velocity(x, t) that carries samples to noise.

    Its time is a variable in which the velocity changes evenly, so that few steps suffice.

    Attributes:
        velocity: of x (… d) at t, a tensor without axes.
        start, stop: the times of the samples and of the noise; either may be the larger one.
        scale: x at the start is `scale · sample`.
        noise_std: x at the end is Gaussian with this std.
    """

    velocity: Field
    start: float
    stop: float
    scale: float
    noise_std: float


@dataclass
class DensitySolver:
    """How to integrate a log-density, with the solvers of torchdiffeq.

    Args:
        solver: an adaptive one, "dopri5", "bosh3", "adaptive_heun" or "dopri8"; or one of fixed
            steps, "rk4" (four evaluations per step), "midpoint" or "heun2" (two) or "euler" (one).
        num_steps: equal steps of a solver of fixed steps; no effect on others.
        rtol, atol: relative and absolute tolerance of an adaptive solver, for a token's entries and
            its log-density.
        divergence: "exact", the trace of the Jacobian by as many derivatives as a token is wide;
            "hutchinson", an unbiased estimate by `num_probes` derivatives along random signs
            (Grathwohl et al. 2019, eq. 7, https://arxiv.org/abs/1810.01367); or "auto", exact for
            tokens up to a width of 16.
        num_probes: derivatives of the estimate.
        generator: source of its randomness, on any device; by default torch's global one.
    """

    solver: str = "dopri5"
    num_steps: int = 16
    rtol: float = 1e-3
    atol: float = 1e-3
    divergence: str = "auto"
    num_probes: int = 1
    generator: Generator | None = None

    def __post_init__(self):
        check_choice("solver", self.solver, (*ADAPTIVE_SOLVERS, *FIXED_STEP_SOLVERS))
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_positive_int(num_steps=self.num_steps, num_probes=self.num_probes)
        check_above_zero(rtol=self.rtol, atol=self.atol)
        check_generator(self.generator)

    def is_exact(self, width: int) -> bool:
        """Whether the divergence of tokens of this width is the exact one."""
        return self.divergence == "exact" or (self.divergence == "auto" and width <= EXACT_WIDTH)

    def description(self, width: int) -> dict:
        """The arguments that count for samples of this width, as plain values, "auto" resolved."""
        exact = self.is_exact(width)
        steps = ("num_steps",) if self.solver in FIXED_STEP_SOLVERS else ("rtol", "atol")
        names = ("solver", *steps, "divergence", *(() if exact else ("num_probes",)))
        known = {name: getattr(self, name) for name in names}
        return known | dict(divergence="exact" if exact else "hutchinson")

    def samples_at_a_time(self, width: int) -> int:
        """How many samples to integrate at once, for the memory of the derivatives."""
        return max(1, JVP_CHUNK // (width if self.is_exact(width) else self.num_probes))

    def probes(self, like: Tensor) -> Tensor:
        """Vectors v (k … d) whose sum of v vᵀ is the identity, or is so on average."""
        width = like.shape[-1]
        if self.is_exact(width):
            axes = torch.eye(width, device=like.device, dtype=like.dtype)
            return axes.view(width, *(1,) * (like.ndim - 1), width).expand(width, *like.shape)
        device = like.device if self.generator is None else self.generator.device
        bits = torch.randint(
            2, (self.num_probes, *like.shape), generator=self.generator, device=device
        )
        # signs have the least variance: the diagonal of the Jacobian contributes none (Hutchinson
        # 1989)
        return (2 * bits - 1).to(like.device, like.dtype) / math.sqrt(self.num_probes)

    @torch.inference_mode(False)  # older versions of torch take no such derivatives in it
    @torch.no_grad()
    def log_density(self, samples: Tensor, flow: FlowToNoise) -> Tensor:
        """The log-density (…) in nats of samples (… d) in single precision or a higher one."""
        odeint = need_torchdiffeq()
        probes, evaluations = self.probes(samples), count()
        most = MAX_NFE_DOUBLE if samples.dtype == torch.float64 else MAX_NFE

        def change(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            if self.solver in ADAPTIVE_SOLVERS and next(evaluations) == most:
                raise self._no_end(most)
            return divergence(lambda x: flow.velocity(x, time), state[0], probes)

        x = flow.scale * samples
        times = torch.tensor([flow.start, flow.stop], device=x.device, dtype=x.dtype)
        if self.solver in FIXED_STEP_SOLVERS:
            grid = torch.linspace(
                flow.start, flow.stop, self.num_steps + 1, device=x.device, dtype=x.dtype
            )
            kwargs = dict(options=dict(grid_constructor=lambda *_: grid))
        else:
            # no step beyond the end: there is no such time. The largest error of any sample
            # decides, or many could hide one
            options = dict(step_t=times[1:], dtype=times.dtype, norm=_largest_error)
            kwargs = dict(rtol=self.rtol, atol=self.atol, options=options)
        try:
            with without_jit_warnings():  # of torch, at the first derivative
                state = (x, x.new_zeros(x.shape[:-1]))
                ends, changes = odeint(change, state, times, method=self.solver, **kwargs)
        except AssertionError as error:
            if "underflow" in str(error):  # the steps do
                raise self._no_end(most) from error
            raise
        width = x.shape[-1]
        noise = ends[-1] / flow.noise_std
        log_normalizer = width * (0.5 * math.log(2 * math.pi) + math.log(flow.noise_std))
        log_noise = -0.5 * noise.square().sum(dim=-1) - log_normalizer
        return log_noise + changes[-1] + width * math.log(flow.scale)

    def _no_end(self, most: int) -> FloatingPointError:
        return FloatingPointError(
            f"solver {self.solver!r} needs too short steps, or more than {most} evaluations, "
            "for "
            f"rtol={self.rtol:g} and atol={self.atol:g}: take higher tolerances or a solver of "
            "fixed "
            "steps, if weights and conditions are finite"
        )


def divergence(
    field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """A field at x (… d), and its divergence (…): the sum of vᵀ J v over the probes v (k … d)."""

    def along(probe: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(field, (x,), (probe,))

    value, derivatives = torch.vmap(along, out_dims=(None, 0))(probes)
    return value, (probes * derivatives).sum(dim=(0, -1))


def _largest_error(state: tuple[Tensor, Tensor]) -> Tensor:
    """The norm of the error: of a sample's entries the root mean square, or its log-density's."""
    x, change = state
    return torch.maximum(x.square().mean(dim=-1).sqrt().max(), change.abs().max())


def need_torchdiffeq() -> Callable:
    """Its `odeint`; a ModuleNotFoundError, which says what to install, if it is not there."""
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "likelihoods need torchdiffeq: pip install 'autoregressive-diffusion-pytorch[eval]'"
        ) from error
    return odeint
