"""The options of `sample`, and their defaults: generation settings, kept apart from the weights."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Generator, Tensor

from ..heads.guidance import (
    check_context_guidance,
    check_guidance_interval,
    check_guidance_scale,
    check_guidance_target,
)
from ..heads.head import Head
from ..utils.files import atomic_write_text
from ..utils.validation import check_choice, check_known, check_positive_int

GENERATION_FILE = "generation.json"
GUIDANCE_SCHEDULES = ("constant", "linear")


class SamplingOptions(TypedDict, total=False):
    """Options of `sample`, `stream` and `complete`; what is not given is as of `generation`.

    Attributes:
        labels: what to draw, of a model with classes: (m,), or one number.
        cond: vectors (m dim_cond), or sequences of them (m l dim_cond), of a model with `dim_cond`.
        cond_mask: (m l), False for vectors that are padding.
        guidance_scale: of classifier-free guidance: 0 for the unconditional model (which needs
            neither labels nor vectors), 1 for the conditional one, more to follow labels and
            vectors more closely. One number, or one per sequence, (b,).
        guidance_schedule: "constant", or "linear": growing evenly along the sequence, from about 1
            to the scale.
        guidance_interval: two sigmas between which `guidance_scale` applies; by default at all
            sigmas. Outside, the conditional model is followed.
        context_guidance: of a model with a `context_drop_prob`, at least 0: classifier-free
            guidance against a null condition that knows the token's position alone. 1 for the
            learned distribution, more to follow the tokens so far, labels and vectors more closely.
            It is applied after `guidance_scale`.
        guidance_target: what both guidances move: "tokens", the head's predictions, or
            "conditions", what it reads, which takes no further evaluation.
        num_steps, solver: of the head's sampler, where it has them.
        order: of a model that draws in any: "random" (its default, another order for each
            sequence), "raster", or a permutation of the positions (n,).
        num_iterations: of a model that draws in any order: passes of the transformer, in each of
            which it draws some tokens, few at first, independently of each other. By default a
            quarter of the tokens for a masked model, but at least 8, and one token each for others.
        end_threshold: of a model that predicts ends: a sequence ends where the probability of it is
            above this, from 0 to 1; by default ends are drawn.
        temperature: factor on all noise, at least 0: 1 for the learned distribution, less for less
            variety.
        generator: source of randomness, on any device: the same seed gives the same result. Or a
            list of them, one per sample: each sample then depends on its own alone.
        precision: "bf16" to draw with weights rounded to bfloat16, faster where the device has
            instructions for it. "int8", on a CPU, to round the weights of linear layers once and
            what they read at each call to 8 bits, faster for few samples of a large model.
            The solver's state stays in single precision. "no" for the weights as they are.
        compile: compile the transformer's step and the head's loop with `torch.compile`: minutes at
            first, faster then. What cannot be compiled runs without, after one warning each.
    """

    labels: Tensor | Sequence[int] | int | None
    cond: Tensor | None
    cond_mask: Tensor | None
    guidance_scale: float | Sequence[float] | Tensor | None
    guidance_schedule: Literal["constant", "linear"] | None
    guidance_interval: tuple[float, float] | None
    context_guidance: float | None
    guidance_target: Literal["tokens", "conditions"] | None
    num_steps: int | None
    solver: str | None
    order: Literal["raster", "random"] | Tensor | Sequence[int] | None
    num_iterations: int | None
    end_threshold: float | None
    temperature: float | None
    generator: Generator | Sequence[Generator] | None
    precision: Literal["no", "bf16", "int8"] | None
    compile: bool


@dataclass(frozen=True)
class GenerationSettings:
    """Defaults of `sample`; those of this class draw from the learned distribution.

    Attributes:
        num_steps, solver, temperature: as of `SamplingOptions`; None for the head's own.
        num_iterations: as of `SamplingOptions`; None for the model's own.
        end_threshold: as of `SamplingOptions`; None to draw ends.
        guidance_scale, guidance_schedule, guidance_interval, context_guidance, guidance_target: as
            of `SamplingOptions`.
    """

    num_steps: int | None = None
    solver: str | None = None
    num_iterations: int | None = None
    end_threshold: float | None = None
    temperature: float = 1.0
    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] | None = None
    context_guidance: float = 1.0
    guidance_target: str = "tokens"

    def __post_init__(self):
        for name in ("num_steps", "num_iterations"):
            if getattr(self, name) is not None:
                check_positive_int(**{name: getattr(self, name)})
        for name in ("temperature", "guidance_scale"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        check_end_threshold(self.end_threshold)
        interval = self.guidance_interval
        GuidanceSchedule(self.guidance_scale, self.guidance_schedule, interval)
        check_guidance_target(self.guidance_target, check_guidance_interval(interval))
        check_context_guidance(self.context_guidance)
        if self.guidance_interval is not None:  # a list, where it comes from a file
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))

    def with_given(self, options: dict[str, Any], head: Head) -> dict[str, Any]:
        """Options of `sample`, with these settings where they are None.

        With another solver than the settings' (or else the head's) own, their steps do not count.
        """
        own = asdict(self)
        if options.get("solver") not in (None, self.solver or getattr(head, "solver", None)):
            own["num_steps"] = None
        given = {name: value for name, value in options.items() if value is not None}
        return {name: value for name, value in own.items() if value is not None} | given

    def given(self) -> dict[str, Any]:
        """The settings that are not the defaults, by name."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value != getattr(GenerationSettings, name)
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `generation.json` into a folder, whole or not at all."""
        file = Path(folder) / GENERATION_FILE
        return atomic_write_text(file, json.dumps(self.given(), indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> GenerationSettings:
        """Reads `generation.json` of a folder; the defaults where there is none.

        Raises:
            ValueError: it holds something else than settings; the file and the setting are named.
        """
        file = Path(folder) / GENERATION_FILE
        if not file.exists():
            return cls()
        try:
            found = json.loads(file.read_text())
            if not isinstance(found, dict):
                raise TypeError(f"settings by name are expected, got {found!r}")
            for name in found:
                check_choice("a generation setting", name, [field.name for field in fields(cls)])
            return cls(**found)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} holds no generation settings: {error}") from error


class GuidanceSchedule:
    """The scale of classifier-free guidance at each token, and the sigmas at which it guides.

    Args:
        scale: at least 0, one number or one per sequence. 0 is the unconditional model, 1 the
            conditional one; above 1, samples follow their condition more closely than the data do.
        schedule: "constant", or "linear": growing evenly along the sequence, from about 1 to
            `scale` at its last token (Li et al. 2024, https://arxiv.org/abs/2406.11838, in their
            code).
        interval: guide only at sigmas above the first and up to the second number, and elsewhere
            follow the conditional model (Kynkäänniemi et al. 2024,
            https://arxiv.org/abs/2404.07724).
    """

    def __init__(
        self,
        scale: float | Sequence[float] | Tensor = 1.0,
        schedule: Literal["constant", "linear"] = "constant",
        interval: tuple[float, float] | None = None,
    ):
        check_choice("guidance_schedule", schedule, GUIDANCE_SCHEDULES)
        self.scale = check_guidance_scale(scale).detach().cpu()
        if self.scale.ndim > 1 or self.scale.numel() < 1:
            raise ValueError(
                f"guidance_scale must be a number or of shape (b,), got {tuple(self.scale.shape)}"
            )
        self.schedule = schedule
        self.interval = check_guidance_interval(interval)

    @property
    def is_conditional(self) -> bool:
        """Only the conditional model is evaluated."""
        return bool((self.scale == 1).all())

    @property
    def is_unconditional(self) -> bool:
        """Only the unconditional model is evaluated."""
        whole = self.schedule == "constant" and self.interval == (0.0, inf)
        return whole and bool((self.scale == 0).all())

    def scales(self, length: int) -> Tensor:
        """The scale at each of `length` tokens, (n,) or (n b)."""
        if self.schedule == "constant":
            return self.scale.expand(length, *self.scale.shape)
        progress = torch.arange(1, length + 1) / length
        progress = progress.view(-1, *(1,) * self.scale.ndim)
        return torch.lerp(torch.ones_like(self.scale), self.scale, progress)


def check_end_threshold(threshold: float | None) -> None:
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if threshold is not None and not (is_number and 0 <= threshold <= 1):
        raise ValueError(f"end_threshold must be a probability from 0 to 1, got {threshold!r}")


def with_sampling_options(method: Callable) -> Callable:
    """Names the `**options` of a model's method, `SamplingOptions` and those of its head.

    Its signature lists them, for editors and `help`; an unknown one is refused at once.
    """
    signature = inspect.signature(method)
    *own, _ = signature.parameters.values()
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind.__forward_arg__
        )
        for name, kind in SamplingOptions.__annotations__.items()
    ]
    names = [parameter.name for parameter in (*own[1:], *options)]

    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        known = dict.fromkeys((*names, *self.head.sampling_options()))
        check_known(method.__qualname__, kwargs, list(known))
        return method(self, *args, **kwargs)

    checked.__signature__ = signature.replace(parameters=[*own, *options])
    return checked
