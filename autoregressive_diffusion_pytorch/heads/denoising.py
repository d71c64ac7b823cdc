"""What heads that denoise share: the path to noise, the preconditioning, the loss, the likelihood.

A subclass gives its path from token to noise, x_t = alpha · token + sigma_t · noise, and the
distribution of its noise levels in training. All else is the same: the preconditioning of Karras et
al. 2022 (https://arxiv.org/abs/2206.00364), whose Table 1 and equations are cited below, and for
which only sigma = sigma_t / alpha counts. `heads/sampler.py` draws tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..utils.modes import evaluating
from ..utils.rng import Generators
from ..utils.validation import check_above_zero, check_choice, check_positive_int
from .guidance import Guidance
from .likelihood import DensitySolver, FlowToNoise, need_torchdiffeq
from .mlp import MLP
from .sampler import Sampler
from .scale import ScaledHead
from .solvers import SOLVERS, karras_schedule, num_evaluations


class NoiseDraw(NamedTuple):
    """Points of the path drawn for training, each (… 1)."""

    alpha: Tensor | float
    sigma: Tensor
    time: Tensor  # as the network reads it
    weight: Tensor | float  # of the squared error of F


class DenoisingHead(ScaledHead):
    """A head whose network denoises tokens, for a path and noise levels that subclasses give.

    Args:
        dim_token, dim_z, width, depth, dropout: as of `MLP`, its network: F of Table 1.
        solver: of `SOLVERS`: "dpmpp_2m" or "euler" (one evaluation of the network per step) or
            "heun" (two; with `S_churn` stochastic), unless `sample` is given another.
        num_sample_steps: its steps. By default those of `NUM_SAMPLE_STEPS`, whose samples follow
            the learned distribution.
        sigma_data: std of the tokens' entries. By default it is measured on the first batch that
            the head is trained on; a trainer measures more. It is stored with the weights.
        rho: of the sigma schedule, eq. 5.
        S_churn, S_tmin, S_tmax, S_noise: of the stochastic sampler, Algorithm 2; only "heun" uses
            them. Unlike the sigma schedule, `S_tmin` and `S_tmax` are not in units of `sigma_data`.
        clamp_during_sampling: clamp drawn tokens to [-1, 1], for data of that range.
        num_noise_draws: independent noise draws per token and training step. More of them train the
            head better for the same pass through the backbone (Li et al. 2024 use 4).
    """

    NUM_SAMPLE_STEPS: ClassVar[dict[str, int]] = dict(dpmpp_2m=8, euler=32, heun=12)

    def __init__(
        self,
        dim_token: int,
        dim_z: int,
        *,
        width: int,
        depth: int,
        dropout: float = 0.0,
        solver: str | None = None,
        num_sample_steps: int | None = None,
        sigma_data: float | None = None,
        rho: float = 7.0,
        S_churn: float = 0.0,
        S_tmin: float = 0.05,
        S_tmax: float = 50.0,
        S_noise: float = 1.003,
        clamp_during_sampling: bool = False,
        num_noise_draws: int = 1,
    ):
        super().__init__(dim_token, dim_z, sigma_data)
        if not S_churn >= 0:
            raise ValueError(f"S_churn must be at least 0, got {S_churn}")
        if S_churn > 0 and solver not in (None, "heun"):
            raise ValueError(f"S_churn above 0 needs the solver 'heun', got {solver!r}")
        if solver is None:
            solver = "heun" if S_churn > 0 else "dpmpp_2m"
        check_choice("solver", solver, self.NUM_SAMPLE_STEPS)
        check_choice("clamp_during_sampling", clamp_during_sampling, (True, False))
        steps = self.NUM_SAMPLE_STEPS[solver] if num_sample_steps is None else num_sample_steps
        check_positive_int(num_sample_steps=steps, num_noise_draws=num_noise_draws)
        check_above_zero(rho=rho)
        self.net = self.make_network(width=width, depth=depth, dropout=dropout)
        self.solver = solver
        self.num_sample_steps = num_sample_steps
        self.rho = rho
        self.S_churn = S_churn
        self.S_tmin = S_tmin
        self.S_tmax = S_tmax
        self.S_noise = S_noise
        self.clamp_during_sampling = clamp_during_sampling
        self.num_noise_draws = num_noise_draws

    def make_network(self, **sizes) -> MLP:
        return MLP(self.dim_z, self.dim_token, **sizes)

    def checkpoint_gradients(self) -> None:
        self.net.checkpoint_gradients()

    # the path, and the preconditioning of Table 1: network input and target have unit variance

    @abstractmethod
    def draw_noise_levels(self, like: Tensor, sigma_data: Tensor | float) -> NoiseDraw:
        """Points of the path for training, of the shape of `like`."""

    @abstractmethod
    def alpha(self, sigma: float) -> float:
        """The path's signal scale at a sigma."""

    @abstractmethod
    def network_time(self, sigma: Tensor) -> Tensor:
        """Sigmas as the network reads them."""

    @abstractmethod
    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        """The equation from tokens to noise, where `modulate(time)` modulates the network."""

    def std(
        self, alpha: Tensor | float, sigma: Tensor | float, sigma_data: Tensor | float
    ) -> Tensor | float:
        """The std of x_t: 1 / c_in."""
        return ((alpha * sigma_data) ** 2 + sigma**2) ** 0.5

    def modulate_time(self, time: Tensor) -> Tensor:
        """The part of the network's modulation by a time (…): (… m w)."""
        return self.net.modulate_time(time)

    def modulate_level(self, sigma: float) -> Tensor:
        """The same by a sigma."""
        return self.modulate_time(self.network_time(torch.tensor(sigma, dtype=torch.float64)))

    def output(
        self,
        x: Tensor,
        alpha: Tensor | float,
        sigma: Tensor | float,
        modulation: Tensor,
        sigma_data: Tensor | float,
    ) -> Tensor:
        """The output F of the network for x = alpha · token + sigma · noise (… d)."""
        return self.net.denoise(x / self.std(alpha, sigma, sigma_data), modulation).to(x.dtype)

    def denoised(self, x: Tensor, sigma: float, modulation: Tensor, sigma_data: float) -> Tensor:
        """The denoised token D of x = token + sigma · noise (… d): eq. 7.

        `modulation` is (… m w), or (k … m w) for k conditions.
        """
        alpha = self.alpha(sigma)
        output = self.output(alpha * x, alpha, alpha * sigma, modulation, sigma_data)
        variance = sigma**2 + sigma_data**2
        return sigma_data**2 / variance * x + sigma * sigma_data / variance**0.5 * output

    def velocity(self, x: Tensor, times: Tensor, modulation: Tensor, sigma_data: float) -> Tensor:
        """The velocity dx/dt at x = t · token + (1 - t) · noise (… d), for any head's own path.

        (token - x_t) / (1 - t) for the token of eq. 7 of Karras et al. 2022, with 1 - t cancelled:
        nothing is singular at time 1.
        """
        std = self.std(times, 1 - times, sigma_data)
        output = self.output(x, times, 1 - times, modulation, sigma_data)
        return (times * sigma_data**2 - (1 - times)) / std**2 * x + sigma_data / std * output

    # training

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """The loss of each token, the mean over width and noise draws: (… d), (… dim) -> (…)."""
        if self.training:
            self.measure(tokens)
        sigma_data = self.training_scale
        tokens = tokens.expand(self.num_noise_draws, *tokens.shape)
        # noise levels and weights span orders of magnitude: never below single precision
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        alpha, sigma, time, weight = self.draw_noise_levels(tokens[..., :1], sigma_data)
        modulation = self.modulate_time(time.squeeze(-1)) + self.net.modulate_z(z)
        noise = torch.randn_like(tokens)
        output = self.output(alpha * tokens + sigma * noise, alpha, sigma, modulation, sigma_data)
        # eq. 8, by F: the squared error of the denoised token is c_out² times that of F
        std = self.std(alpha, sigma, sigma_data)
        target = (sigma / sigma_data * tokens - alpha * sigma_data * noise) / std
        return (weight * (output - target).square()).mean(dim=(0, -1))

    # sampling

    def sample(
        self,
        z: Tensor,
        *,
        guidance: Sequence[Guidance] = (),
        num_steps: int | None = None,
        solver: str | None = None,
        temperature: float = 1.0,
        generator: Generators = None,
        compile: bool = False,
    ) -> Tensor:
        """Draws one token per condition: (… dim) -> (… d).

        Args:
            z: conditions (… dim).
            guidance: entries (z, scale, interval). At each evaluation, for each entry in order,
                D becomes D_other + scale · (D - D_other), where D_other is the denoised token given
                the entry's z.
            num_steps: steps of the solver, at least 1; by default the head's.
            solver: name of the solver; by default the head's.
            temperature: factor on all noise, at least 0: it multiplies the std of a Gaussian.
                1 changes nothing, 0 is deterministic.
            generator: source of randomness, on any device, or a list of them, one per entry of the
                first axis of z; by default torch's global one.
            compile: compile the loop over the steps with `torch.compile` (on CUDA: one captured
                graph), where that is possible.

        Returns:
            Tokens in single precision or that of z, whichever is higher: so is the solver's state.
        """
        options = dict(num_steps=num_steps, solver=solver, temperature=temperature)
        return self.sampler(**options, generator=generator, compile=compile)(z, guidance)

    def sampler(
        self, *, num_steps: int | None = None, solver: str | None = None, **options
    ) -> Sampler:
        """`sample` with these options, for many calls: embeds each sigma only once.

        They hold for the weights as they are now.
        """
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        sigmas = karras_schedule(num_steps, self.scale, self.rho)
        solve, num_noises = partial(SOLVERS[solver], sigmas=sigmas), 1
        if solver == "heun":
            names = ("S_churn", "S_tmin", "S_tmax", "S_noise")
            solve = partial(solve, **{name: getattr(self, name) for name in names})
            if self.S_churn > 0:
                num_noises += sum(self.S_tmin <= sigma <= self.S_tmax for sigma in sigmas[1:-1])
        return Sampler(self, solve, num_noises, **options)

    def steps_and_solver(
        self, num_steps: int | None = None, solver: str | None = None
    ) -> tuple[int, str]:
        """The steps and the solver of `sample`: those given, else the head's own."""
        if solver is None:
            solver = self.solver
        check_choice("solver", solver, self.NUM_SAMPLE_STEPS)
        if num_steps is None:
            own = self.num_sample_steps if solver == self.solver else None
            num_steps = self.NUM_SAMPLE_STEPS[solver] if own is None else own
        check_positive_int(num_steps=num_steps)
        return num_steps, solver

    def sampling_settings(
        self, *, num_steps: int | None = None, solver: str | None = None, **others
    ) -> dict[str, Any]:
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        return dict(solver=solver, num_steps=num_steps)

    def num_evaluations(
        self, num_steps: int | None = None, solver: str | None = None, **others
    ) -> int:
        """The NFE per token of these options; the conditions of guidance are evaluated at once."""
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        return num_evaluations(solver, num_steps)

    # likelihood

    @torch.no_grad()
    def log_prob(self, tokens: Tensor, z: Tensor, **solver_kwargs) -> Tensor:
        """The log-density of each token given its condition, in nats: (… d), (… dim) -> (…).

        It is that of the ordinary differential equation which a sampler without churn, clamping,
        guidance and temperature solves; a sampler of few steps only comes near it. It is computed
        without gradients, in the highest precision of tokens and z, at least a single one.

        Args:
            tokens: finite numbers (… d).
            z: conditions (… dim), finite too.
            solver_kwargs: as of `DensitySolver`: `solver`, `num_steps`, `rtol`, `atol`,
                `divergence`, `num_probes`, `generator`.

        Raises:
            FloatingPointError: an adaptive solver came to no end.
        """
        solver = DensitySolver(**solver_kwargs)
        expected = (*z.shape[:-1], self.dim_token)
        if tokens.shape != expected:
            raise ValueError(
                f"tokens must be of shape {expected}, as z and the head's width say, "
                f"got {tuple(tokens.shape)}"
            )
        for name, given in (("tokens", tokens), ("z", z)):
            if not given.isfinite().all():
                raise ValueError(f"{name} must be finite, got some that are not")
        if tokens.numel() == 0:
            return tokens.new_zeros(tokens.shape[:-1])
        dtype = torch.promote_types(tokens.dtype, z.dtype)
        tokens = tokens.to(torch.promote_types(dtype, torch.float32))
        size = solver.samples_at_a_time(tokens.shape[-1])
        parts = (given.reshape(-1, given.shape[-1]).split(size) for given in (tokens, z))
        with evaluating(list(self.modules())):
            densities = [
                solver.log_density(part, self._flow_given(part_z))
                for part, part_z in zip(*parts, strict=True)
            ]
        return torch.cat(densities).view(tokens.shape[:-1])

    def _flow_given(self, z: Tensor) -> FlowToNoise:
        z_modulation = self.net.modulate_z(z)
        return self.flow_to_noise(lambda time: self.modulate_time(time) + z_modulation)

    def density_settings(self, **solver_kwargs) -> dict[str, Any]:
        need_torchdiffeq()
        return DensitySolver(**solver_kwargs).description(self.dim_token)
