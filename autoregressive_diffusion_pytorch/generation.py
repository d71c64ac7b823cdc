"""Generation settings: how a model draws unless `sample` is told otherwise, kept apart from its architecture and weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path

from autoregressive_diffusion_pytorch.checks import check_choice, check_positive_int
from autoregressive_diffusion_pytorch.conditioning import GuidanceSchedule
from autoregressive_diffusion_pytorch.heads.guidance import check_context_guidance

GENERATION_FILE = "generation.json"


@dataclass(frozen=True)
class GenerationSettings:
    """Defaults of `sample`, of which those here draw from the distribution that was learned. Arguments of `sample` win.

    Attributes:
        num_steps, solver, temperature: as of the head's `sampler`; None for the head's own.
        guidance_scale, guidance_schedule, guidance_interval, context_guidance: as of `Autoregressive.sample`.
    """

    num_steps: int | None = None
    solver: str | None = None
    temperature: float = 1.0
    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] | None = None
    context_guidance: float = 1.0

    def __post_init__(self):
        if self.num_steps is not None:
            check_positive_int(num_steps=self.num_steps)
        for name in ("temperature", "guidance_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        GuidanceSchedule(self.guidance_scale, self.guidance_schedule, self.guidance_interval)
        check_context_guidance(self.context_guidance)
        if self.guidance_interval is not None:  # a list, where it comes from a file
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))

    def steps_and_solver(
        self, num_steps: int | None = None, solver: str | None = None, head_solver: str | None = None
    ) -> tuple[int | None, str | None]:
        """Those given, and where they are None those of the settings: but for another solver than theirs, or the head's, no steps
        of it."""
        if num_steps is None and solver in (None, self.solver or head_solver):
            num_steps = self.num_steps
        return num_steps, self.solver if solver is None else solver

    def given(self) -> dict:
        """The settings that are not the defaults, by name."""
        return {name: value for name, value in asdict(self).items() if value != getattr(GenerationSettings, name)}

    def save(self, folder: str | Path) -> Path:
        """Writes `generation.json` into a folder, whole or not at all."""
        file = Path(folder) / GENERATION_FILE
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps(self.given(), indent=2))
        partial.replace(file)
        return file

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
