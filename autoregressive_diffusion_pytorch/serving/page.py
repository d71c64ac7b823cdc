"""The page: a tab for each thing that a model, or a run, can show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from ..models.latents import Latents
from ..utils.text import printable
from .drawing import complete_tab, draw_tab, growing_grids, most_at_first, surprise_tab
from .sequences import continue_tab, growing_plots
from .served import Served
from .training import training_tab

if TYPE_CHECKING:
    from ..runs.record import RunRecord

STYLE = Path(__file__).with_name("page.css")
FONTS = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
OLDEST_UPLOAD = 3600  # seconds that an uploaded file is kept


def model_page(served: Served) -> gr.Blocks:
    """A page to draw with a model, and to look at the run that it is of."""
    model = served.model()
    with _blocks(served.name) as page:
        gr.Markdown(f"# {served.name}")
        if served.format is not None:
            with gr.Tab("Draw"):
                draw_tab(served, page, 8, "Sequences", growing_plots)
            if not model.draws_any_order:
                with gr.Tab("Continue"):
                    continue_tab(served, page)
        else:
            with gr.Tab("Draw"):
                draw_tab(served, page, most_at_first(served), "Pictures", growing_grids)
            with gr.Tab("Complete"):
                complete_tab(served, page)
            if model.head.has_density() and not isinstance(model.tokenizer, Latents):
                with gr.Tab("Surprise"):
                    surprise_tab(served)
        if served.record is not None:
            with gr.Tab("Training"):
                training_tab(served.record, page)
    return page


def run_page(record: RunRecord) -> gr.Blocks:
    """A page to look at a run while it is trained, and later."""
    name = printable(record.folder.resolve().name)
    with _blocks(name) as page:
        gr.Markdown(f"# {name}")
        training_tab(record, page)
    return page


def _blocks(name: str) -> gr.Blocks:
    return gr.Blocks(
        title=name,
        analytics_enabled=False,
        delete_cache=(OLDEST_UPLOAD, OLDEST_UPLOAD),
        fill_width=True,
    )
