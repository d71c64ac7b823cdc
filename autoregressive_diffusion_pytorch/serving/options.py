"""The widgets of what a model can be asked for: labels, guidance, steps, order, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import torch
from torch.nn import Module

from ..models.sequence_model import SequenceModel
from ..models.settings import GUIDANCE_SCHEDULES
from .served import Request, Served

MOST = 64  # samples, or completions of a class
LEARNED = "1 draws from what was learned"
BEST = 0  # as a checkpoint's step
SHOWN_CLASSES = 12  # of more, one is chosen at first


class Widgets:
    """Widgets, by the names of what they choose, and the request that they make.

    An option that stays as it is at first is not passed on: generation settings then decide.
    """

    def __init__(self, served: Served, page: gr.Blocks, count: int, counted: str):
        self.served = served
        self.own: dict[str, gr.components.Component] = {}
        self.options: dict[str, gr.components.Component] = {}
        model = served.model()
        with gr.Group():
            self._labels()
            self.own["count"] = gr.Slider(1, MOST, count, step=1, label=counted)
            self.own["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0)
            self._guidance(model)
            self.options["temperature"] = gr.Slider(
                0, 1.5, model.generation.temperature, step=0.05, label="Temperature", info=LEARNED
            )
        with gr.Accordion("More settings", open=False):
            if served.record is not None:
                self._checkpoint(page)
            self._advanced(model)

    @property
    def components(self) -> list[gr.components.Component]:
        return [*self.own.values(), *self.options.values()]

    def request(self, values: Sequence[Any]) -> Request:
        """The request of the components' values."""
        own = dict(zip(self.own, values, strict=False))
        labels = own.pop("labels", None)
        if self.served.classes is not None:
            labels = labels or list(range(len(self.served.classes)))
        options = {}
        for (name, widget), value in zip(
            self.options.items(), values[len(self.own) :], strict=True
        ):
            if value != widget.value and value is not None:
                options[name] = value
        edges = [options.pop(name, None) for name in ("low_sigma", "high_sigma")]
        if edges != [None, None]:
            options["guidance_interval"] = (edges[0] or 0.0, edges[1] or float("inf"))
        if options.get("guidance_scale") == 0 and "guidance_interval" not in options:
            labels = None
        for name in ("count", "seed"):
            if own[name] is None:
                raise ValueError(f"{name} must be a whole number, got none")
            own[name] = int(own[name])
        step = own.pop("step", BEST) or None
        return Request(labels=labels, step=step, options=options, **own)

    def _labels(self) -> None:
        served = self.served
        if served.classes is None:
            return
        choices = [(name, label) for label, name in enumerate(served.classes)]
        few = len(choices) <= SHOWN_CLASSES
        self.own["labels"] = gr.Dropdown(
            choices,
            value=[] if few else [0],
            multiselect=True,
            label="What to draw",
            info="Classes, a row for each; all if none is chosen.",
        )

    def _checkpoint(self, page: gr.Blocks) -> None:
        """Those that are there when the page is opened."""

        def choices() -> list[tuple[str, int]]:
            steps = [point.step for point in self.served.record.checkpoints]
            return [("best", BEST), *((f"step {step:,}", step) for step in steps)]

        self.own["step"] = step = gr.Dropdown(
            choices(),
            value=BEST,
            label="Checkpoint",
            info="The best has the lowest validation loss; without one it is the newest.",
        )
        opened = dict(show_progress="hidden", queue=False, api_visibility="private")
        page.load(lambda: gr.Dropdown(choices()), None, step, **opened)

    def _guidance(self, model: Module) -> None:
        settings, conditioning = model.generation, _sequence_model(model).conditioning
        if self.served.classes is not None and conditioning.cond_drop_prob > 0:
            self.options["guidance_scale"] = gr.Slider(
                0,
                max(8, settings.guidance_scale),
                settings.guidance_scale,
                step=0.1,
                label="Guidance",
                info=f"Above 1 to follow labels more closely; 0 for no label; {LEARNED}.",
            )
        if _sequence_model(model).context_drop_prob > 0:
            self.options["context_guidance"] = gr.Slider(
                0,
                max(6, settings.context_guidance),
                settings.context_guidance,
                step=0.1,
                label="Context guidance",
                info=f"Above 1 to follow what is drawn so far more closely; {LEARNED}.",
            )

    def _advanced(self, model: Module) -> None:
        settings, head = model.generation, model.head
        own = head.sampling_settings(**settings.with_given({}, head))
        if "num_steps" in own:
            self.options["num_steps"] = gr.Slider(
                1, max(64, own["num_steps"]), own["num_steps"], step=1, label="Steps per token"
            )
        if "solver" in own:
            self.options["solver"] = gr.Dropdown(
                list(head.NUM_SAMPLE_STEPS), value=own["solver"], label="Solver"
            )
        sequence_model = _sequence_model(model)
        if sequence_model.draws_any_order:
            self.options["order"] = gr.Dropdown(
                ["random", "raster"], value="random", label="Order of the tokens"
            )
            self.options["num_iterations"] = gr.Slider(
                1,
                sequence_model.max_seq_len,
                _num_iterations(sequence_model),
                step=1,
                label="Iterations",
                info="Passes of the transformer, each for some tokens.",
            )
        if self.served.format is not None and not sequence_model.draws_any_order:
            longest = sequence_model.max_seq_len
            self.options["seq_len"] = gr.Slider(1, longest, longest, step=1, label="Most tokens")
        if sequence_model.end_head is not None:
            self.options["min_seq_len"] = gr.Slider(1, longest, 1, step=1, label="Fewest tokens")
            self.options["end_threshold"] = gr.Number(
                settings.end_threshold,
                label="Threshold of an end",
                info="From 0 to 1: end where it is more probable; by default ends are drawn.",
            )
        if not {"guidance_scale", "context_guidance"}.isdisjoint(self.options):
            self.options["guidance_target"] = gr.Dropdown(
                ["tokens", "conditions"], value=settings.guidance_target, label="Guidance moves"
            )
        if "guidance_scale" in self.options:
            self.options["guidance_schedule"] = gr.Dropdown(
                list(GUIDANCE_SCHEDULES),
                value=settings.guidance_schedule,
                label="Guidance along the tokens",
            )
            with gr.Row():
                for name, label in dict(low_sigma="from", high_sigma="up to").items():
                    self.options[name] = gr.Number(
                        None, label=f"Guide at sigma {label}", min_width=120
                    )


def _num_iterations(model: SequenceModel) -> int:
    """Those of `sample` by default."""
    none_known = torch.empty(1, 0, dtype=torch.long)
    given = model.generation.num_iterations
    return len(model.order_of(model.max_seq_len, none_known, None, given).sizes)


def _sequence_model(model: Module) -> SequenceModel:
    """The sequence model, which that of images holds."""
    return getattr(model, "model", model)
