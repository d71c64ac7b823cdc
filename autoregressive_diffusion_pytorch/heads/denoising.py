"""What heads that denoise share: the loss, the sampler with its guidance, and the likelihood.

A head is told by its path from token to noise, `x_t = alpha · token + sigma_t · noise`, and by the distribution of its noise levels
in training. All else is the same for both: the preconditioning of Karras et al. 2022 (https://arxiv.org/abs/2206.00364), whose
Table 1 and equations are cited below, for which only the noise level `sigma = sigma_t / alpha` counts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, nan
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from autoregressive_diffusion_pytorch.checks import check_above_zero, check_choice, check_positive_int
from autoregressive_diffusion_pytorch.compilation import compiled
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads.guidance import Guidance, check_guidance_interval, check_guidance_scale, guide
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.likelihood import DensitySolver, FlowToNoise
from autoregressive_diffusion_pytorch.modes import evaluating
from autoregressive_diffusion_pytorch.solvers import SOLVERS, Noise, karras_schedule, num_evaluations

SIGMA_DATA = 0.5  # of a head that is not trained yet


class NoiseDraw(NamedTuple):
    """Points of the path drawn for training, each (… 1)."""

    alpha: Tensor | float
    sigma: Tensor
    time: Tensor  # as the network is told it
    weight: Tensor | float  # of the square error of F


class DenoisingHead(Head):
    """A head whose network denoises tokens, for a path and a distribution of noise levels that subclasses give.

    Args:
        net: the network, F of Table 1.
        solver: of `SOLVERS`: "dpmpp_2m" or "euler" (one evaluation of the network per step) or "heun" (two; with `S_churn`
            stochastic), unless `sample` is given another.
        num_sample_steps: its steps. By default those of `NUM_SAMPLE_STEPS`, with which what is drawn is what was learned.
        sigma_data: standard deviation of the tokens' entries. By default that of the first batch that the head is trained on; a
            trainer measures more. It is kept with the weights.
        rho: of the sampler's noise levels, eq. 5.
        S_churn, S_tmin, S_tmax, S_noise: of the stochastic sampler, Algorithm 2; only "heun" makes use of them. Unlike the
            sampler's noise levels, `S_tmin` and `S_tmax` are not in units of `sigma_data`.
        clamp_during_sampling: clamp drawn tokens to [-1, 1], for data of that range.
        num_noise_draws: independent noise draws per token and training step. More of them train the head better for the same pass
            through the backbone (Li et al. 2024 use 4).
    """

    NUM_SAMPLE_STEPS: ClassVar[dict[str, int]] = dict(dpmpp_2m=8, euler=32, heun=12)

    def __init__(
        self,
        net: MLP,
        *,
        solver: str | None,
        num_sample_steps: int | None,
        sigma_data: float | None,
        rho: float,
        S_churn: float,
        S_tmin: float,
        S_tmax: float,
        S_noise: float,
        clamp_during_sampling: bool,
        num_noise_draws: int,
    ):
        super().__init__()
        if not S_churn >= 0:
            raise ValueError(f"S_churn must be at least 0, got {S_churn}")
        if S_churn > 0 and solver not in (None, "heun"):
            raise ValueError(f"S_churn above 0 needs the solver 'heun', got {solver!r}")
        if solver is None:
            solver = "heun" if S_churn > 0 else "dpmpp_2m"
        check_choice("solver", solver, SOLVERS)
        check_choice("clamp_during_sampling", clamp_during_sampling, (True, False))
        steps = self.NUM_SAMPLE_STEPS[solver] if num_sample_steps is None else num_sample_steps
        check_positive_int(num_sample_steps=steps, num_noise_draws=num_noise_draws)
        check_above_zero(rho=rho, sigma_data=SIGMA_DATA if sigma_data is None else sigma_data)
        self.net = net
        self.solver = solver
        self.num_sample_steps = num_sample_steps
        self.rho = rho
        self.S_churn = S_churn
        self.S_tmin = S_tmin
        self.S_tmax = S_tmax
        self.S_noise = S_noise
        self.clamp_during_sampling = clamp_during_sampling
        self.num_noise_draws = num_noise_draws
        # a buffer, so that it goes where the weights go; not a number until it is known
        self.register_buffer("sigma_data", torch.tensor(nan if sigma_data is None else float(sigma_data)))
        self._given_sigma_data = sigma_data
        self._is_measured = sigma_data is not None

    @property
    def is_measured(self) -> bool:
        """Whether `sigma_data` is known: given, measured, or loaded with the weights."""
        if not self._is_measured:
            self._is_measured = not self.sigma_data.isnan().item()
        return self._is_measured

    @property
    def scale(self) -> float:
        """`sigma_data` as a number, `SIGMA_DATA` until it is known."""
        return self.sigma_data.item() if self.is_measured else SIGMA_DATA

    @property
    def config(self) -> dict:
        measured = self.sigma_data.item() if self.is_measured else None
        return super().config | dict(sigma_data=measured if self._given_sigma_data is None else self._given_sigma_data)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        name = f"{prefix}sigma_data"
        if not self.sigma_data.is_meta:
            # weights of version 1.0.0 have no such entry: there it was an argument alone
            if name not in state_dict:
                state_dict[name] = torch.tensor(self.scale)
            if state_dict[name].isnan():
                state_dict[name] = self.sigma_data
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._is_measured = not (self.sigma_data.is_meta or self.sigma_data.isnan())

    @torch.no_grad()
    def measure(self, tokens: Tensor) -> None:
        """Takes the standard deviation of the entries of tokens (… d) for `sigma_data`, unless it is known."""
        if not self.is_measured and tokens.numel() > 1:
            std = tokens.float().std()
            if std > 0:
                self.sigma_data.copy_(std)
                self._is_measured = True  # for torch.compile, which cannot ask the buffer

    def _apply(self, *args, **kwargs) -> DenoisingHead:
        # follows the weights to their device, but is never rounded with them
        sigma_data = self.sigma_data
        super()._apply(*args, **kwargs)
        if not (sigma_data.is_meta or self.sigma_data.is_meta):
            self.sigma_data = sigma_data.to(self.sigma_data.device)
        return self

    # preconditioning, Table 1: the network sees unit variance, and what it has to say has unit variance, at all noise levels

    def std(self, alpha: Tensor | float, sigma: Tensor | float, sigma_data: Tensor | float) -> Tensor | float:
        """The standard deviation of x_t: 1 / c_in."""
        return ((alpha * sigma_data) ** 2 + sigma**2) ** 0.5

    def output(
        self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float, modulation: Tensor, sigma_data: Tensor | float
    ) -> Tensor:
        """What the network says, F, of `x = alpha · token + sigma · noise` (… d)."""
        return self.net.denoise(x / self.std(alpha, sigma, sigma_data), modulation).to(x.dtype)

    def denoised(self, x: Tensor, sigma: float, modulation: Tensor, sigma_data: float) -> Tensor:
        """The denoised token D of `x = token + sigma · noise` (… d), eq. 7; `modulation` is (… m w), or (k … m w) for k of them."""
        alpha = self.alpha(sigma)
        output = self.output(alpha * x, alpha, alpha * sigma, modulation, sigma_data)
        variance = sigma**2 + sigma_data**2
        return sigma_data**2 / variance * x + sigma * sigma_data / variance**0.5 * output

    # training

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        """The loss of each token, `(… d), (… dim) -> (…)`, averaged over the token's width and the noise draws."""
        if self.training:
            self.measure(tokens)
        sigma_data = self.sigma_data if self.is_measured else SIGMA_DATA
        tokens = tokens.expand(self.num_noise_draws, *tokens.shape)
        # noise levels and weights span orders of magnitude: never below single precision
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        alpha, sigma, time, weight = self.draw_noise_levels(tokens[..., :1], sigma_data)
        modulation = self.net.modulate(time.squeeze(-1), z)
        noise = torch.randn_like(tokens)
        output = self.output(alpha * tokens + sigma * noise, alpha, sigma, modulation, sigma_data)
        # eq. 8, by F: the square error of the denoised token is c_out² times that of F
        std = self.std(alpha, sigma, sigma_data)
        target = (sigma / sigma_data * tokens - alpha * sigma_data * noise) / std
        return (weight * (output - target).square()).mean(dim=(0, -1))

    @abstractmethod
    def draw_noise_levels(self, like: Tensor, sigma_data: Tensor | float) -> NoiseDraw:
        """Points of the path for training, of the shape of `like`."""

    @abstractmethod
    def alpha(self, sigma: float) -> float:
        """The path's signal scale at a noise level."""

    @abstractmethod
    def network_time(self, sigma: float) -> float:
        """A noise level as the network is told it."""

    # sampling

    def sample(self, z: Tensor, *, guidance: Sequence[Guidance] = (), **sampler_kwargs) -> Tensor:
        """Draws one token for each condition, `(… dim) -> (… d)`.

        Args:
            z: conditions (… dim).
            guidance: `Guidance(z, scale, interval)` entries: what the head says of the condition is moved away from what it says of
                each entry's, at each evaluation, in their order.
            sampler_kwargs: as of `sampler`.

        Returns:
            Tokens in single precision or the condition's, whichever is higher: so is the sampler's state.
        """
        return self.sampler(**sampler_kwargs)(z, guidance)

    @torch.no_grad()
    def sampler(
        self,
        *,
        num_steps: int | None = None,
        solver: str | None = None,
        temperature: float = 1.0,
        generator: Generator | None = None,
        compile: bool = False,
    ) -> Callable[..., Tensor]:
        """A function `(z, guidance=()) -> tokens`, as of `sample`, for many calls with the same arguments.

        What depends on the noise levels alone is computed once: it holds for the weights as they now are.

        Args:
            num_steps: steps of the solver, at least 1; by default the head's.
            solver: name of the solver; by default the head's.
            temperature: factor on every noise that the sampler draws, at least 0. A Gaussian's standard deviation is multiplied by
                just this factor; 1 changes nothing, 0 is deterministic.
            generator: source of randomness, on any device; by default torch's global one.
            compile: compile the loop over the steps with `torch.compile` (on CUDA: one captured graph), where that is possible.
        """
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        if not 0 <= temperature < inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        sigma_data = self.scale
        sigmas = karras_schedule(num_steps, sigma_data, self.rho)
        solve = partial(SOLVERS[solver], sigmas=sigmas)
        if solver == "heun":
            solve = partial(solve, S_churn=self.S_churn, S_tmin=self.S_tmin, S_tmax=self.S_tmax, S_noise=self.S_noise)
        time_modulations: dict[float, Tensor] = {}  # filled by the first token, read by all others
        modules = list(self.modules())

        def run(modulations: Tensor, scales: Sequence[Tensor], intervals: Sequence[tuple[float, float]], noise: Noise) -> Tensor:
            def denoise(x: Tensor, sigma: float) -> Tensor:
                if sigma not in time_modulations:
                    time = torch.tensor(self.network_time(sigma), dtype=torch.float32)
                    time_modulations[sigma] = self.net.modulate_time(time)
                active = [i for i, (low, high) in enumerate(intervals) if low < sigma <= high]
                rows = modulations if len(active) == len(scales) else modulations[[0, *(i + 1 for i in active)]]
                denoised, *others = self.denoised(x, sigma, time_modulations[sigma] + rows, sigma_data)
                for i, other in zip(active, others, strict=True):
                    denoised = guide(denoised, other, scales[i], sigma_data)
                return denoised

            tokens = solve(denoise, noise)
            return tokens.clamp(-1, 1) if self.clamp_during_sampling else tokens

        def run_ahead(
            modulations: Tensor, scales: Sequence[Tensor], intervals: Sequence[tuple[float, float]], noises: Sequence[Tensor]
        ) -> Tensor:
            noises = iter(noises)
            return run(modulations, scales, intervals, lambda: next(noises))

        run_compiled = None
        if compile:
            cuda = self.net.proj_in.weight.device.type == "cuda"
            run_compiled = compiled(run_ahead, fullgraph=True, dynamic=False, mode="reduce-overhead" if cuda else None)

        @torch.no_grad()
        def draw(z: Tensor, guidance: Sequence[Guidance] = ()) -> Tensor:
            guidance = [Guidance(*entry) for entry in guidance]
            dtype = torch.promote_types(z.dtype, torch.float32)
            source = z.device if generator is None else generator.device
            shape = (*z.shape[:-1], self.net.dim_input)

            def noise() -> Tensor:
                return temperature * torch.randn(shape, generator=generator, device=source, dtype=dtype).to(z.device)

            scales = [_scale(entry, z, dtype) for entry in guidance]
            intervals = [check_guidance_interval(entry.interval) for entry in guidance]
            with evaluating(modules):
                modulations = self._modulations(z, [entry.z for entry in guidance])
                if not (run_compiled and time_modulations):  # a compiled program has its times' modulations before it starts
                    return run(modulations, scales, intervals, noise)
                # and its noise; and a captured graph writes every result to the same place
                churned = solver == "heun" and self.S_churn > 0
                draws = 1 + churned * sum(self.S_tmin <= sigma <= self.S_tmax for sigma in sigmas[1:-1])
                noises = [noise() for _ in range(draws)]
                return run_compiled(modulations, scales, intervals, noises).clone()

        return draw

    def _modulations(self, z: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The modulations of a condition (… dim) and of others: (k … m w)."""
        for other in others:
            if other.shape not in (z.shape[-1:], z.shape):
                raise ValueError(
                    f"the z of a guidance must be of shape {tuple(z.shape[-1:])} or {tuple(z.shape)}, got {tuple(other.shape)}"
                )
        if not others:
            return self.net.modulate_cond(z).unsqueeze(0)
        # in one product: for few tokens, to read its weights is most of the work
        rows = [given.reshape(-1, z.shape[-1]) for given in (z, *others)]
        parts = self.net.modulate_cond(torch.cat(rows)).split([len(part) for part in rows])
        stacked = torch.stack([part.expand_as(parts[0]) for part in parts])
        return stacked.view(len(rows), *z.shape[:-1], *parts[0].shape[1:])

    def num_evaluations(self, num_steps: int | None = None, solver: str | None = None) -> int:
        """The evaluations of the network per token (NFE); several conditions, for guidance, are evaluated at once.

        Arguments as of `sampler`.
        """
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        return num_evaluations(solver, num_steps)

    def steps_and_solver(self, num_steps: int | None = None, solver: str | None = None) -> tuple[int, str]:
        """The steps and the solver that `sampler` uses: those given, and where they are None the head's own."""
        if solver is None:
            solver = self.solver
        check_choice("solver", solver, SOLVERS)
        if num_steps is None:
            own = self.num_sample_steps if solver == self.solver else None
            num_steps = self.NUM_SAMPLE_STEPS[solver] if own is None else own
        check_positive_int(num_steps=num_steps)
        return num_steps, solver

    # likelihood

    @torch.no_grad()
    def log_prob(self, tokens: Tensor, z: Tensor, **solver_kwargs) -> Tensor:
        """The log-density of each token given its condition, in nats: `(… d), (… dim) -> (…)`.

        It is that of the ordinary differential equation which a sampler without churn, clamping, guidance and temperature solves;
        a sampler of few steps comes near it only. It is computed without gradients, in single precision or the tokens',
        whichever is higher.

        Args:
            tokens: finite numbers (… d).
            z: conditions (… dim), finite too.
            solver_kwargs: as of `DensitySolver`: `solver`, `num_steps`, `rtol`, `atol`, `divergence`, `num_probes`, `generator`.

        Raises:
            FloatingPointError: a solver that adapts its steps came to no end.
        """
        solver = DensitySolver(**solver_kwargs)
        if tokens.shape[-1] != self.net.dim_input or tokens.shape[:-1] != z.shape[:-1]:
            expected = (*z.shape[:-1], self.net.dim_input)
            raise ValueError(f"tokens must be of shape {expected}, as z and the head's width say, got {tuple(tokens.shape)}")
        for name, given in (("tokens", tokens), ("z", z)):
            if not given.isfinite().all():
                raise ValueError(f"{name} must be finite, got some that are not")
        if tokens.numel() == 0:
            return tokens.new_zeros(tokens.shape[:-1])
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        size = solver.samples_at_a_time(tokens.shape[-1])
        pairs = zip(tokens.reshape(-1, tokens.shape[-1]).split(size), z.reshape(-1, z.shape[-1]).split(size), strict=True)
        with evaluating(list(self.modules())):
            parts = [solver.log_density(part, self._flow_given(part_z)) for part, part_z in pairs]
        return torch.cat(parts).view(tokens.shape[:-1])

    def _flow_given(self, z: Tensor) -> FlowToNoise:
        z_modulation = self.net.modulate_cond(z)
        return self.flow_to_noise(lambda time: self.net.modulate_time(time) + z_modulation)

    @abstractmethod
    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        """The equation from tokens to noise; `modulate` gives the network's modulation at a time as it is told it."""


def _scale(guidance: Guidance, z: Tensor, dtype: torch.dtype) -> Tensor:
    # a tensor, not a number: to torch.compile each number would be another program
    scale = check_guidance_scale(guidance.scale).to(z.device, dtype)
    if scale.numel() > 1 and scale.shape != z.shape[:-1]:
        raise ValueError(f"the scale of a guidance must be a number or of shape {tuple(z.shape[:-1])}, got {tuple(scale.shape)}")
    return scale.reshape(()) if scale.numel() == 1 else scale.unsqueeze(-1)
