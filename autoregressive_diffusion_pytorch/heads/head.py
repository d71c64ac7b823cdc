"""What every head is: a loss for each token, a way to draw tokens, and how probable a token is."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.checks import check_choice, check_positive_int
from autoregressive_diffusion_pytorch.compilation import compiled
from autoregressive_diffusion_pytorch.conditioning import (
    check_context_guidance,
    check_guidance_interval,
    check_guidance_scale,
    guide,
)
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.likelihood import DensitySolver, FlowToNoise
from autoregressive_diffusion_pytorch.modes import evaluating
from autoregressive_diffusion_pytorch.solvers import Field, State, visited_times

# the noise levels at which context guides, in standard deviations of the tokens: above them the noise hides what the context says,
# below them the token is decided
CONTEXT_GUIDANCE_LEVELS = (0.6, 6.0)


class Head(Module, ABC):
    """The distribution of one token given its condition.

    A head knows nothing of sequences: it sees tokens `(… d)` and conditions `(… dim)`.

    Args:
        net: the denoiser.
        solver: name of the sampler's solver, unless `sample` is told another: one of `NUM_SAMPLE_STEPS`.
        num_sample_steps: its steps; or a dictionary with the steps of solvers by name, such as `dict(euler=8)`. Those of all others
            are in `NUM_SAMPLE_STEPS`.
        clamp_during_sampling: hold the clean tokens that the sampler sees on its way within [-1, 1], for data of that range: True,
            False, or "guided" to hold them only where guidance would push them further out than the model itself goes. Without,
            much guidance in few steps diverges.
        num_noise_draws: independent noise draws for each token and training step. More of them train the head better for the
            same pass through the backbone (Li et al. 2024 use 4).
    """

    NUM_SAMPLE_STEPS: ClassVar[dict[str, int]]  # the solvers of the head, each with the steps that it takes by default
    sigma_data: float  # standard deviation of the tokens' entries

    def __init__(
        self,
        net: MLP,
        *,
        solver: str,
        num_sample_steps: int | dict[str, int] | None,
        clamp_during_sampling: bool | Literal["guided"],
        num_noise_draws: int,
    ):
        super().__init__()
        check_choice("clamp_during_sampling", clamp_during_sampling, (True, False, "guided"))
        check_choice("solver", solver, self.NUM_SAMPLE_STEPS)
        steps = {} if num_sample_steps is None else num_sample_steps
        if not isinstance(steps, dict):
            check_positive_int(num_sample_steps=steps)
            steps = {solver: steps}
        for name, number in steps.items():
            check_choice("a solver in num_sample_steps", name, self.NUM_SAMPLE_STEPS)
            check_positive_int(**{f"num_sample_steps of {name!r}": number})
        check_positive_int(num_noise_draws=num_noise_draws)
        self.net = net
        self.solver = solver
        self.num_sample_steps = self.NUM_SAMPLE_STEPS | steps
        self.clamp_during_sampling = clamp_during_sampling
        self.num_noise_draws = num_noise_draws

    @property
    def config(self) -> dict:
        """The constructor's arguments, but for the network: a head keeps each under its own name."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self)).parameters)[1:]}

    def forward(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """The loss of each token, `(… d), (… dim) -> (…)`, averaged over the token's width and the noise draws."""
        draws = tokens.expand(self.num_noise_draws, *tokens.shape)
        # noise levels and weights span orders of magnitude: never below single precision
        draws = draws.to(torch.promote_types(tokens.dtype, torch.float32))
        return self.losses(draws, cond).mean(dim=0)

    def sample(
        self,
        cond: Tensor,
        uncond: Tensor | None = None,
        guidance_scale: Tensor | float = 1.0,
        *,
        no_context: Tensor | None = None,
        context_guidance: float = 1.0,
        **sampler_kwargs,
    ) -> Tensor:
        """Draws one token for each condition, `(… dim) -> (… d)`.

        Args:
            cond: conditions (… dim).
            uncond: conditions (… dim) of the unconditional model, for classifier-free guidance: what the head says of the two is
                combined, at each evaluation, as uncond + scale · (cond - uncond).
            guidance_scale: the scale, one number or one for each condition (…); of no effect without `uncond`.
            no_context: a condition (dim), or (… dim), that tells nothing of what is drawn already. The guided result is moved away
                from what the head says of this one in the same way, at noise levels between the two `CONTEXT_GUIDANCE_LEVELS`,
                in units of `sigma_data`.
            context_guidance: the scale of that, one number; of no effect without `no_context`.
            sampler_kwargs: as of `sampler`.

        Returns:
            Tokens in single precision or the condition's, whichever is higher: so is the sampler's state.
        """
        guidance_scale, context_guidance = check_guidance_scale(guidance_scale), check_context_guidance(context_guidance)
        no_context = None if context_guidance == 1 else no_context
        return self.sampler(**sampler_kwargs)(cond, uncond, guidance_scale, no_context, context_guidance)

    @torch.no_grad()
    def sampler(
        self,
        *,
        num_steps: int | None = None,
        solver: str | None = None,
        temperature: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        generator: Generator | None = None,
        compile: bool = False,
    ) -> Callable[..., Tensor]:
        """A function that draws one token for each condition, `(… dim) -> (… d)`, for many calls with the same arguments.

        It takes `cond`, `uncond`, `guidance_scale`, `no_context` and `context_guidance` of `sample`, in this order. All that
        depends on the schedule alone is computed here, once: it holds for the weights as they now are.

        Args:
            num_steps: steps of the solver, at least 1; by default as many as the head's `num_sample_steps` has for it. 16 of
                "dpmpp_2m" make a Gaussian of the spread `sigma_data`, or of a tenth of that, 7 to 9 % wider; fewer than 5 are for
                the look of images alone (`multistep_schedule`).
            solver: name of the solver, by default the head's.
            temperature: factor on every noise that the sampler draws, at least 0. A Gaussian's standard deviation is
                multiplied by just this factor; 1 changes nothing, 0 is deterministic.
            guidance_interval: noise levels, above the first and up to the second, at which `uncond` guides. At others samples
                follow `cond` alone (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724). A level is the standard deviation
                of the noise for a token of weight 1; the flow head's first is infinite.
            generator: source of randomness, on any device; by default torch's global one.
            compile: compile the loop over the steps with `torch.compile` (on CUDA: one captured graph), where that is possible.
        """
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        if not 0 <= temperature < inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        guidance_interval = check_guidance_interval(guidance_interval)

        # a dry run on plain numbers: the times that the solver will ask for, and how often it will draw noise
        times, num_draws = self._dry_run(num_steps, solver)
        time_modulations = self.net.modulate_time(self.network_time(torch.tensor(times, dtype=torch.float32)))
        run = self._run
        if compile:
            cuda = time_modulations.device.type == "cuda"
            run = compiled(run, fullgraph=True, dynamic=False, mode="reduce-overhead" if cuda else None)

        modules = list(self.modules())

        @torch.no_grad()
        def draw(
            cond: Tensor,
            uncond: Tensor | None = None,
            guidance_scale: Tensor | float = 1.0,
            no_context: Tensor | None = None,
            context_guidance: Tensor | float = 1.0,
        ) -> Tensor:
            if uncond is not None and uncond.shape != cond.shape:
                raise ValueError(f"uncond must have the shape of cond, {tuple(cond.shape)}, got {tuple(uncond.shape)}")
            noises = (temperature * self._unit_noise(cond, generator) for _ in range(num_draws))
            if no_context is not None and no_context.shape not in (cond.shape[-1:], cond.shape):
                raise ValueError(
                    f"no_context must be of shape {tuple(cond.shape[-1:])} or {tuple(cond.shape)}, got {tuple(no_context.shape)}"
                )

            def as_scale(given: Tensor | float) -> Tensor:
                return torch.as_tensor(given).to(cond.device, torch.promote_types(cond.dtype, torch.float32))

            conds, scale = cond.unsqueeze(0), None
            if uncond is not None:
                scale = as_scale(guidance_scale)
                if scale.numel() > 1 and scale.shape != cond.shape[:-1]:
                    raise ValueError(
                        f"guidance_scale must be a number or of shape {tuple(cond.shape[:-1])}, got {tuple(scale.shape)}"
                    )
                scale = scale.unsqueeze(-1)
                conds = torch.stack((uncond, cond))
            # tensors, not numbers: to torch.compile each number would be another program
            guidances = (scale, guidance_interval), (as_scale(context_guidance), no_context)
            with evaluating(modules):
                if not compile:
                    return run(conds, *guidances, noises, time_modulations, num_steps, solver)
                # a captured graph has its noise before it starts, and writes every result to the same place
                return run(conds, *guidances, list(noises), time_modulations, num_steps, solver).clone()

        return draw

    def num_evaluations(self, num_steps: int | None = None, solver: str | None = None) -> int:
        """How often a sampler evaluates the network for a token; several conditions, for guidance, are evaluated at once.

        Arguments as of `sampler`.
        """
        return len(self._dry_run(*self.steps_and_solver(num_steps, solver))[0])

    def steps_and_solver(self, num_steps: int | None = None, solver: str | None = None) -> tuple[int, str]:
        """The steps and the solver that `sampler` uses: those given, and where they are None the head's own."""
        solver = self.solver if solver is None else solver
        check_choice("solver", solver, self.NUM_SAMPLE_STEPS)
        num_steps = self.num_sample_steps[solver] if num_steps is None else num_steps
        check_positive_int(num_steps=num_steps)
        return num_steps, solver

    def _dry_run(self, num_steps: int, solver: str) -> tuple[list[float], int]:
        """The times at which a solver evaluates the network, and how often it draws noise."""
        draws = []
        solve = partial(self.integrate, noise=lambda: draws.append(1) or 0.0, num_steps=num_steps, solver=solver)
        return visited_times(solve), len(draws)

    def _unit_noise(self, cond: Tensor, generator: Generator | None) -> Tensor:
        shape = (*cond.shape[:-1], self.net.dim_input)
        dtype = torch.promote_types(cond.dtype, torch.float32)
        source = cond.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(cond.device)

    def _run(
        self,
        conds: Tensor,
        guidance: tuple[Tensor | None, tuple[float, float] | None],
        context_guidance: tuple[Tensor, Tensor | None],
        noises: Iterable[Tensor],
        time_modulations: Tensor,
        num_steps: int,
        solver: str,
    ) -> Tensor:
        """Draws a token for each condition (1 … dim), or with a guidance scale for each pair, unconditional first (2 … dim).

        `guidance` is a scale and an interval, `context_guidance` a scale and the condition without context, if there is one;
        `time_modulations` has those of all evaluations, in their order.
        """
        scale, interval = guidance
        context_scale, no_context = context_guidance
        modulations = self._modulations(conds, no_context)
        plain = len(conds) - 1  # before it stands the one without the condition, after it the one without context
        lowest, highest = (bound * self.sigma_data for bound in CONTEXT_GUIDANCE_LEVELS)
        time_modulations = iter(time_modulations.unbind())
        noises = iter(noises)

        def evaluate(x: Tensor, time: float) -> Tensor:
            level = self.noise_level(time)
            guided = scale is not None and (interval is None or interval[0] < level <= interval[1])
            context_guided = no_context is not None and lowest < level <= highest
            time_modulation = next(time_modulations)
            if not (guided or context_guided):
                return self.evaluate(x, time, time_modulation + modulations[plain])
            first = 0 if guided else plain
            # what the network gives is the denoised token, or the velocity, up to what depends on x and the time alone: to guide
            # the one is to guide the other, and the score
            outputs = self.evaluate(x, time, time_modulation + modulations[first : plain + 1 + context_guided])
            result = outputs[plain - first]
            if guided:
                result = self._guided(x, time, outputs[0], result, scale)
            if context_guided:
                result = self._guided(x, time, outputs[-1], result, context_scale)
            return result

        def held(x: Tensor, time: float) -> Tensor:
            return evaluate(x, time).clamp(*self.data_range(x, time))

        solve = partial(self.integrate, noise=lambda: next(noises), num_steps=num_steps, solver=solver)
        if self.clamp_during_sampling not in (False, "guided"):
            return solve(held).clamp(-1, 1)  # some solvers extrapolate beyond the clean tokens
        return solve(evaluate)

    def _modulations(self, conds: Tensor, no_context: Tensor | None) -> Tensor:
        """The modulations of conditions (k … dim), and after them that of the one without context: (k+1 … modulations width)."""
        if no_context is None:
            return self.net.modulate_cond(conds)
        # in one product: for few tokens, to read its weights is most of the work
        rows = torch.cat((conds.flatten(0, -2), no_context.reshape(-1, no_context.shape[-1])))
        of_conds, of_no_context = self.net.modulate_cond(rows).tensor_split((conds.shape[:-1].numel(),))
        of_conds = of_conds.unflatten(0, conds.shape[:-1])
        of_no_context = of_no_context.unflatten(0, no_context.shape[:-1] or (1,))
        return torch.cat((of_conds, of_no_context.expand_as(of_conds[:1])))

    def _guided(self, x: Tensor, time: float, unconditional: Tensor, conditional: Tensor, scale: Tensor) -> Tensor:
        result = guide(unconditional, conditional, scale)
        if self.clamp_during_sampling != "guided":
            return result
        low, high = self.data_range(x, time)
        lowest = torch.minimum(conditional, unconditional).clamp(max=low)
        highest = torch.maximum(conditional, unconditional).clamp(min=high)
        return result.clamp(lowest, highest)

    @torch.no_grad()
    def log_prob(self, tokens: Tensor, cond: Tensor, **solver_kwargs) -> Tensor:
        """The log-density of each token given its condition, in nats: `(… d), (… dim) -> (…)`.

        It is that of the ordinary differential equation which a sampler without churn, clamping, guidance and temperature solves,
        down to the lowest noise level; a sampler of few steps comes near it only. It is computed without gradients, in single
        precision or the tokens', whichever is higher.

        Args:
            tokens: finite numbers (… d).
            cond: conditions (… dim), finite too.
            solver_kwargs: as of `DensitySolver`: `solver`, `num_steps`, `rtol`, `atol`, `divergence`, `num_probes`, `generator`.

        Raises:
            FloatingPointError: a solver that adapts its steps came to no end.
        """
        solver = DensitySolver(**solver_kwargs)
        if tokens.shape[-1] != self.net.dim_input or tokens.shape[:-1] != cond.shape[:-1]:
            expected = (*cond.shape[:-1], self.net.dim_input)
            raise ValueError(f"tokens must be of shape {expected}, as cond and the head's width say, got {tuple(tokens.shape)}")
        for name, given in (("tokens", tokens), ("cond", cond)):
            if not given.isfinite().all():
                raise ValueError(f"{name} must be finite, got some that are not")
        if tokens.numel() == 0:
            return tokens.new_zeros(tokens.shape[:-1])
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        size = solver.samples_at_a_time(tokens.shape[-1])
        pairs = zip(tokens.reshape(-1, tokens.shape[-1]).split(size), cond.reshape(-1, cond.shape[-1]).split(size), strict=True)
        with evaluating(list(self.modules())):
            parts = [solver.log_density(part, self._flow_given(part_cond)) for part, part_cond in pairs]
        return torch.cat(parts).view(tokens.shape[:-1])

    def _flow_given(self, cond: Tensor) -> FlowToNoise:
        cond_modulation = self.net.modulate_cond(cond)
        return self.flow_to_noise(lambda times: self.net.modulate_time(self.network_time(times)) + cond_modulation)

    @abstractmethod
    def losses(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """The loss of each token at one noise draw: tokens `(k … d)` and conditions `(… dim)` to `(k …)`."""

    @abstractmethod
    def network_time(self, times: Tensor) -> Tensor:
        """A solver's times, as the network is told them."""

    @abstractmethod
    def noise_level(self, time: float) -> float:
        """The standard deviation of the noise at a solver's time, for a token of weight 1."""

    @abstractmethod
    def evaluate(self, x: Tensor, time: float, modulation: Tensor) -> Tensor:
        """What the solvers integrate, at `x` (… d), by one evaluation of the network.

        `modulation` is (… m w), for (… d); or (k … m w), for k answers at the same `x`, (k … d).
        """

    @abstractmethod
    def data_range(self, x: Tensor, time: float) -> tuple[Tensor | float, Tensor | float]:
        """What `evaluate` gives at `x` where the clean token is -1, and where it is 1."""

    @abstractmethod
    def flow_to_noise(self, modulate: Callable[[Tensor], Tensor]) -> FlowToNoise:
        """What the sampler integrates, from tokens to noise; `modulate` gives the network's modulation at a solver's time."""

    @abstractmethod
    def integrate(self, evaluate: Field, *, noise: Callable[[], State], num_steps: int, solver: str) -> State:
        """Runs a solver from noise to tokens; all randomness comes from `noise`. The state may be a plain number."""
