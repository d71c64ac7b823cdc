"""The flow-map head: a flow that is crossed in one step, or in few.

"How to build a consistency model: Learning flow maps via self-distillation", Boffi, Albergo &
Vanden-Eijnden 2025 (https://arxiv.org/abs/2505.18825), with times that run from 0, noise, to 1,
data, as in `rectified_flow.py`. From a trained head it learns the way of that head's sampler:
"Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed", Luhman & Luhman
2021 (https://arxiv.org/abs/2101.02388), here between any two points of the way.
"""

from __future__ import annotations

import copy
from functools import partial
from math import inf, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..utils.modes import evaluating
from ..utils.validation import check_choice, check_share
from .denoising import DenoisingHead
from .energy import energy_score
from .head import Head
from .mlp import MLP
from .rectified_flow import RectifiedFlow
from .sampler import Sampler
from .solvers import MAX_SIGMA, MIN_SIGMA, follow_map

OBJECTIVES = ("lsd", "psd")
WIDEST_LAGRANGIAN = 16  # wider tokens learn the better map by "psd"
AT_ENDS_OF_WAY = 0.8  # `at_ends` of what is learned from a teacher
FASTEST = 20.0  # of the time features, in radians per unit of time: the network's slope in t counts


class FlowMap(RectifiedFlow):
    """A flow and its map: X(s, t, x), where the flow takes x from time s to time t >= s.

    The network gives the average velocity v of X(s, t, x) = x + (t - s) · v(s, t, x). At s = t that
    is the velocity of the flow itself, so that densities and the solvers of `RectifiedFlow` stay;
    its loss, in evaluation, is the loss of that flow. A network that gives zero is the exact map of
    Gaussian tokens of std `sigma_data`.

    From tokens the flow is learned by itself, the map off the diagonal s = t from the flow and the
    map, by one of two objectives of Boffi et al. 2025:

    - "lsd" (Lagrangian): the end of a step moves with t as the flow does there;
    - "psd" (progressive): one step equals two shorter ones.

    After `imitate` both are learned from a teacher: see `imitation_error`.

    Args:
        objective: of training from tokens, "lsd" or "psd"; by default the first for tokens up to
            16 wide, the second for wider ones, each where it learns the better map.
        off_diagonal: share of the noise draws that train the map; the others train the flow.
        at_ends: share of the former whose step starts at pure noise, and with "psd" of those,
            independently, whose step ends at a token; 0.8 of both with a teacher.
        num_noise_draws: as of `DenoisingHead`, at least one for each.
        solver: "map", with `num_sample_steps` even steps, by default one; or as of `DenoisingHead`.

    Further arguments as of `RectifiedFlow`, whose times are drawn for both ends of a step.
    """

    NUM_SAMPLE_STEPS: ClassVar[dict[str, int]] = dict(map=1) | RectifiedFlow.NUM_SAMPLE_STEPS

    def __init__(
        self,
        dim_token: int,
        dim_z: int,
        *,
        objective: Literal["lsd", "psd"] | None = None,
        off_diagonal: float = 0.5,
        at_ends: float = 0.4,
        num_noise_draws: int = 2,
        solver: str | None = "map",
        **kwargs,
    ):
        own = dict(num_noise_draws=num_noise_draws, solver=solver)
        super().__init__(dim_token, dim_z, **own, **kwargs)
        if objective is None:
            objective = "lsd" if dim_token <= WIDEST_LAGRANGIAN else "psd"
        check_choice("objective", objective, OBJECTIVES)
        check_choice("model_output_clean", self.model_output_clean, (True,))
        check_share(off_diagonal=off_diagonal, at_ends=at_ends)
        self.num_map_draws = round(off_diagonal * num_noise_draws)
        if not 0 < self.num_map_draws < num_noise_draws:
            raise ValueError(
                "off_diagonal must leave noise draws for the map and for the flow, "
                f"got {off_diagonal} of num_noise_draws = {num_noise_draws}"
            )
        self.objective = objective
        self.off_diagonal = off_diagonal
        self.at_ends = at_ends
        self._errors: dict[str, Tensor] = {}
        self._teacher: tuple[DenoisingHead, ...] = ()  # no part of this head's weights

    def make_network(self, **sizes) -> MLP:
        return MLP(self.dim_z, self.dim_token, num_times=2, fastest=FASTEST, **sizes)

    def metrics(self) -> dict[str, Tensor]:
        return self._errors

    # the map

    def modulate_time(self, time: Tensor, end: Tensor | None = None) -> Tensor:
        """The part of the network's modulation by a step's start and end: (… m w)."""
        return self.net.modulate_time(time, torch.zeros_like(time) if end is None else end - time)

    def modulate_level(self, sigma: float, next_sigma: float | None = None) -> Tensor:
        sigmas = (sigma,) if next_sigma is None else (sigma, next_sigma)
        return self.modulate_time(
            *(self.network_time(torch.tensor(sigma, dtype=torch.float64)) for sigma in sigmas)
        )

    def average_velocity(
        self, x: Tensor, s: Tensor | float, t: Tensor | float, modulation: Tensor, sigma_data: float
    ) -> Tensor:
        """v(s, t, x) for x (… d) and a `modulation` by s, t and the condition."""
        std, end_std = (self.std(time, 1 - time, sigma_data) for time in (s, t))
        # of a Gaussian, (end_std / std - 1) / (t - s), with t - s cancelled
        slope = ((1 + sigma_data**2) * (s + t) - 2) / (std * (std + end_std))
        output = self.net.denoise(x / std, modulation).to(x.dtype)
        return slope * x + sigma_data / std * output

    def denoised(
        self,
        x: Tensor,
        sigma: float,
        modulation: Tensor,
        sigma_data: float,
        next_sigma: float | None = None,
    ) -> Tensor:
        """As of `DenoisingHead`; for a step, the token to which x = t · token + (1 - t) · noise
        moves from the time of one sigma to that of the next."""
        if next_sigma is None:
            return super().denoised(x, sigma, modulation, sigma_data)
        s, t = 1 / (1 + sigma), 1 / (1 + next_sigma)
        return x + (1 - s) * self.average_velocity(x, s, t, modulation, sigma_data)

    # training

    def forward(self, tokens: Tensor, z: Tensor) -> Tensor:
        if not self.training:
            return super().forward(tokens, z)
        self.measure(tokens)
        sigma_data = self.training_scale
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        noise = torch.randn_like(tokens.expand(self.num_noise_draws, *tokens.shape))
        map_noise, noise = noise.tensor_split([self.num_map_draws])
        z_modulation = self.net.modulate_z(z)

        # the flow: at s = t
        times = self.draw_times(noise[..., :1])
        x = torch.lerp(noise, tokens, times)
        velocity = tokens - noise
        if self._teacher:
            velocity = self.velocity_of_teacher(x, times, z)
        velocity = self._velocity(x, times, times, z_modulation, sigma_data) - velocity
        flow_error = velocity.square().mean(dim=-1)

        # the map: at s < t
        score = 0
        if self._teacher:
            map_error, score = self.imitation_error(map_noise, z, z_modulation, sigma_data)
        else:
            s, t = self.draw_steps(map_noise[..., :1])
            x = torch.lerp(map_noise, tokens, s)
            error = self.lagrangian_error if self.objective == "lsd" else self.progressive_error
            map_error = error(x, s, t, z_modulation, sigma_data).square().mean(dim=-1)

        errors = dict(flow_error=flow_error, map_error=map_error)
        self._errors = {name: error.detach().mean() for name, error in errors.items()}
        return torch.cat((flow_error, map_error + score)).mean(dim=0)

    def draw_steps(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Starts and ends s <= t of training steps, of the shape of `like`."""
        times = torch.stack((self.draw_times(like), self.draw_times(like)))
        s, t = times.amin(dim=0), times.amax(dim=0)
        at_ends = AT_ENDS_OF_WAY if self._teacher else self.at_ends
        s = s.masked_fill(torch.rand_like(s) < at_ends, 0)
        # "lsd" learns the way of an end, of which 1 is the last point
        if self._teacher or self.objective == "psd":
            t = t.masked_fill(torch.rand_like(t) < at_ends, 1)
        return s, t

    def lagrangian_error(self, x, s, t, z_modulation, sigma_data) -> Tensor:
        """The velocity in t of the end X(s, t, x) of steps, less the flow's there."""
        # half precision has too little of a derivative; and nothing here is random
        with torch.autocast(x.device.type, enabled=False), evaluating(list(self.net.modules())):
            z_modulation = z_modulation.to(self.net.dtype)

            def velocity(t: Tensor) -> Tensor:
                return self._velocity(x, s, t, z_modulation, sigma_data)

            v, slope = torch.func.jvp(velocity, (t,), (torch.ones_like(t),))
            with torch.no_grad():
                end = x + (t - s) * v
                target = self._velocity(end, t, t, z_modulation, sigma_data)
        return v + (t - s) * slope - target

    def progressive_error(self, x, s, t, z_modulation, sigma_data) -> Tensor:
        """The average velocity of steps, less that of two shorter ones each."""
        with torch.no_grad():
            share = torch.rand_like(s)
            between = torch.lerp(s, t, share)
            first = self._velocity(x, s, between, z_modulation, sigma_data)
            halfway = x + (between - s) * first
            second = self._velocity(halfway, between, t, z_modulation, sigma_data)
            target = torch.lerp(second, first, share)
        return self._velocity(x, s, t, z_modulation, sigma_data) - target

    def _velocity(self, x, s, t, z_modulation, sigma_data) -> Tensor:
        modulation = self.modulate_time(s.squeeze(-1), t.squeeze(-1)) + z_modulation
        return self.average_velocity(x, s, t, modulation, sigma_data)

    # distillation

    @torch.no_grad()
    def imitate(self, teacher: Head) -> None:
        """From now on learns how a trained diffusion or flow head draws tokens, and its flow.

        It starts with the teacher's weights. Its features of the time are others: the last layer
        over them is fitted by least squares.

        Raises:
            TypeError: the teacher is another head.
        """
        if not isinstance(teacher, DenoisingHead):
            kind = type(teacher).__name__
            raise TypeError(f"the teacher of a FlowMap must be a diffusion or flow head, is {kind}")
        teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._teacher = (teacher,)
        own, weights = self.net.state_dict(), teacher.net.state_dict()
        taken = {name for name in own if not name.startswith("time_modulation.")}
        self.net.load_state_dict({name: (weights if name in taken else own)[name] for name in own})
        self.sigma_data.copy_(teacher.sigma_data)
        self._is_measured = teacher.is_measured

        times = (torch.arange(2000, device=self.sigma_data.device) + 0.5) / 2000
        *inner, last = self.net.time_modulation
        features = self.net.embed_times(times, torch.zeros_like(times))
        for layer in inner:
            features = layer(features)
        features = torch.cat((features, torch.ones_like(features[:, :1])), dim=-1).double()
        wanted = self._modulation_of_teacher(times).flatten(-2).double()
        # ridge: features that are almost alike must not get huge weights of opposite sign
        gram = features.T @ features / len(times)
        gram.diagonal().add_(1e-6)
        solution = torch.linalg.solve(gram, features.T @ wanted / len(times))
        last.weight.copy_(solution[:-1].T)
        last.bias.copy_(solution[-1])

    def _apply(self, *args, **kwargs) -> FlowMap:
        super()._apply(*args, **kwargs)
        for teacher in self._teacher:  # it follows the weights to their device
            teacher._apply(*args, **kwargs)
        return self

    def _modulation_of_teacher(self, times: Tensor) -> Tensor:
        (teacher,) = self._teacher
        # beyond the levels that its sampler asks for it has not learned anything
        lowest, highest = MIN_SIGMA * teacher.scale, MAX_SIGMA * teacher.scale
        sigmas = ((1 - times) / times.clamp(min=1e-6)).clamp(lowest, highest)
        return teacher.modulate_time(teacher.network_time(sigmas))

    def imitation_error(self, noise, z, z_modulation, sigma_data) -> tuple[Tensor, Tensor | float]:
        """Of steps along the teacher's ways from noise (k … d): the squared error of their ends
        (k …), and the energy score (…) of how a condition's k ends lie, in the same units.

        The error alone, which a network cannot quite bring to zero, favours ends in the middle of
        those that are likely: tokens would be drawn too close together. All steps of a condition
        are between the same times, so that their ends are samples of one distribution.
        """
        way, times = self.way_of_teacher(noise, z)
        s, t = self.draw_steps(noise[0, ..., :1])
        x, wanted = point_of_way(way, times, s), point_of_way(way, times, t)
        end = x + (t - s) * self._velocity(x, s, t, z_modulation, sigma_data)
        error = (end - wanted).square().mean(dim=-1)
        if len(noise) == 1:
            return error, 0.0
        # of each of the teacher's ends, given all of the map's
        score = energy_score(end.unsqueeze(1), wanted).mean(dim=0)
        return error, sigma_data / sqrt(self.dim_token) * score

    @torch.no_grad()
    def way_of_teacher(self, noise: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The states (n … d) of the teacher's "dpmpp_2m" from noise (… d), and their times (n).

        They are of the path x = t · token + (1 - t) · noise: the first is the noise, the last the
        token.
        """
        (teacher,) = self._teacher
        z_modulation = teacher.net.modulate_z(z)
        states, times = [], []

        def denoise(x: Tensor, sigma: float) -> Tensor:
            states.append(x / (1 + sigma))
            times.append(1 / (1 + sigma))
            modulation = teacher.modulate_level(sigma) + z_modulation
            return teacher.denoised(x, sigma, modulation, teacher.scale)

        token = teacher.sampler(solver="dpmpp_2m").solve(denoise, lambda: noise)
        states = torch.stack((noise, *states[1:], token))
        return states, states.new_tensor([0, *times[1:], 1])

    @torch.no_grad()
    def velocity_of_teacher(self, x: Tensor, times: Tensor, z: Tensor) -> Tensor:
        """The velocity of the teacher's flow at x (… d)."""
        (teacher,) = self._teacher
        modulation = self._modulation_of_teacher(times.squeeze(-1)) + teacher.net.modulate_z(z)
        return teacher.velocity(x, times, modulation, teacher.scale)

    # sampling

    def sampler(
        self, *, num_steps: int | None = None, solver: str | None = None, **options
    ) -> Sampler:
        num_steps, solver = self.steps_and_solver(num_steps, solver)
        if solver != "map":
            return super().sampler(num_steps=num_steps, solver=solver, **options)
        times = [i / num_steps for i in range(num_steps + 1)]
        sigmas = [inf, *((1 - time) / time for time in times[1:])]
        return Sampler(self, partial(follow_map, sigmas=sigmas), **options)


def point_of_way(states: Tensor, times: Tensor, time: Tensor) -> Tensor:
    """The states (… d) at a time (… 1), of those (n … d) at rising times (n).

    Between two of them the way is straight, as it is where the denoised token stays the same.
    """
    i = torch.searchsorted(times, time).clamp(1, len(times) - 1)
    before, after = (states.gather(0, k.expand_as(states[:1]))[0] for k in (i - 1, i))
    return torch.lerp(before, after, (time - times[i - 1]) / (times[i] - times[i - 1]))
