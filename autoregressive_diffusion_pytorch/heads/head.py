"""What every head is: a loss for each token, and a way to draw tokens."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.checks import check_choice, check_positive_int
from autoregressive_diffusion_pytorch.compilation import compiled
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.modes import evaluating
from autoregressive_diffusion_pytorch.solvers import Field, State, visited_times


class Head(Module, ABC):
    """The distribution of one token given its condition.

    A head knows nothing of sequences: it sees tokens `(… d)` and conditions `(… dim)`.

    Args:
        net: the denoiser.
        solver: name of the sampler's solver, unless `sample` is told another: one of `NUM_SAMPLE_STEPS`.
        num_sample_steps: its steps; by default as many as `NUM_SAMPLE_STEPS` has for the solver.
        num_noise_draws: independent noise draws for each token and training step. More of them train the head better for the
            same pass through the backbone (Li et al. 2024 use 4).
    """

    NUM_SAMPLE_STEPS: ClassVar[dict[str, int]]  # the solvers of the head, each with the steps that it takes by default

    def __init__(self, net: MLP, *, solver: str, num_sample_steps: int | None, num_noise_draws: int):
        super().__init__()
        check_choice("solver", solver, self.NUM_SAMPLE_STEPS)
        num_sample_steps = self.NUM_SAMPLE_STEPS[solver] if num_sample_steps is None else num_sample_steps
        check_positive_int(num_sample_steps=num_sample_steps, num_noise_draws=num_noise_draws)
        self.net = net
        self.solver = solver
        self.num_sample_steps = num_sample_steps
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

    def sample(self, cond: Tensor, **kwargs) -> Tensor:
        """Draws one token for each condition, `(… dim) -> (… d)`. Further arguments as of `sampler`.

        Returns:
            Tokens in single precision or the condition's, whichever is higher: so is the sampler's state.
        """
        return self.sampler(**kwargs)(cond)

    @torch.no_grad()
    def sampler(
        self,
        *,
        num_steps: int | None = None,
        solver: str | None = None,
        temperature: float = 1.0,
        generator: Generator | None = None,
        compile: bool = False,
    ) -> Callable[[Tensor], Tensor]:
        """A function that draws one token for each condition, `(… dim) -> (… d)`, for many calls with the same arguments.

        All that depends on the schedule alone is computed here, once. It holds for the weights as they now are.

        Args:
            num_steps: steps of the solver, at least 1; by default the head's `num_sample_steps` or, where another solver than the
                head's is asked for, that solver's number in `NUM_SAMPLE_STEPS`. Those are chosen by the look of images; the exact
                spread of a token takes more, 32 for 3 %.
            solver: name of the solver, by default the head's.
            temperature: factor on every noise that the sampler draws, at least 0. A Gaussian's standard deviation is
                multiplied by just this factor; 1 changes nothing, 0 is deterministic.
            generator: source of randomness, on any device; by default torch's global one.
            compile: compile the loop over the steps with `torch.compile` (on CUDA: one captured graph), where that is possible.
        """
        if num_steps is None:
            num_steps = self.num_sample_steps if solver in (None, self.solver) else self.NUM_SAMPLE_STEPS.get(solver, 1)
        solver = self.solver if solver is None else solver
        check_positive_int(num_steps=num_steps)
        check_choice("solver", solver, self.NUM_SAMPLE_STEPS)
        if not 0 <= temperature < inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")

        # a dry run on plain numbers: the times that the solver will ask for, and how often it will draw noise
        draws = []
        times = visited_times(partial(self.integrate, noise=lambda: draws.append(1) or 0.0, num_steps=num_steps, solver=solver))
        time_modulations = self.net.modulate_time(self.network_time(torch.tensor(times, dtype=torch.float32)))
        run = self._run
        if compile:
            cuda = time_modulations.device.type == "cuda"
            run = compiled(run, fullgraph=True, dynamic=False, mode="reduce-overhead" if cuda else None)

        modules = list(self.modules())

        @torch.no_grad()
        def draw(cond: Tensor) -> Tensor:
            noises = (temperature * self._unit_noise(cond, generator) for _ in draws)
            with evaluating(modules):
                if not compile:
                    return run(cond, noises, time_modulations, num_steps, solver)
                # a captured graph has its noise before it starts, and writes every result to the same place
                return run(cond, list(noises), time_modulations, num_steps, solver).clone()

        return draw

    def _unit_noise(self, cond: Tensor, generator: Generator | None) -> Tensor:
        shape = (*cond.shape[:-1], self.net.dim_input)
        dtype = torch.promote_types(cond.dtype, torch.float32)
        source = cond.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(cond.device)

    def _run(self, cond: Tensor, noises: Iterable[Tensor], time_modulations: Tensor, num_steps: int, solver: str) -> Tensor:
        """Draws a token for each condition. `time_modulations` has those of all evaluations, in their order."""
        cond_modulation = self.net.modulate_cond(cond)
        modulations = (time_modulation + cond_modulation for time_modulation in time_modulations.unbind())
        noises = iter(noises)
        return self.integrate(
            lambda x, time: self.evaluate(x, time, next(modulations)),
            noise=lambda: next(noises),
            num_steps=num_steps,
            solver=solver,
        )

    @abstractmethod
    def losses(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """The loss of each token at one noise draw: tokens `(k … d)` and conditions `(… dim)` to `(k …)`."""

    @abstractmethod
    def network_time(self, times: Tensor) -> Tensor:
        """A solver's times, as the network is told them."""

    @abstractmethod
    def evaluate(self, x: Tensor, time: float, modulation: Tensor) -> Tensor:
        """What the solvers integrate, at `x` (… d): one evaluation of the network."""

    @abstractmethod
    def integrate(self, evaluate: Field, *, noise: Callable[[], State], num_steps: int, solver: str) -> State:
        """Runs a solver from noise to tokens; all randomness comes from `noise`. The state may be a plain number."""
