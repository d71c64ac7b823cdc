"""The tab of a run: its progress, losses, grids and checkpoints, refreshed by themselves."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from .pictures import picture_html, table_html

if TYPE_CHECKING:
    from ..runs.record import RunRecord

EVERY = 3  # seconds
MAX_POINTS = 400  # of a curve
CURVES = dict(loss_average="loss", validation_loss="validation loss")


def training_tab(record: RunRecord, page: gr.Blocks) -> None:
    status = gr.HTML(elem_id="status")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            plot = gr.LinePlot(x="step", y="loss", color="curve", height=280, elem_id="losses")
            checkpoints = gr.HTML(elem_id="checkpoints")
        with gr.Column(scale=2, min_width=320):
            picture = gr.HTML(elem_id="grid")
            place = gr.Slider(0, 1, 1, step=1, label="Grids, from the first to the last")

    def refresh(at: int, count: int) -> tuple[Any, ...]:
        grids, slider, shown = len(record.grids), gr.skip(), gr.skip()
        if grids != count:
            last = max(grids - 1, 0)
            at = last if at >= count - 1 else int(at)  # who looks at the last one goes on to
            slider = gr.Slider(maximum=max(last, 1), value=at, visible=last > 0)
            shown = _grid_html(record, at)
        return _status_html(record), _losses(record), slider, shown, _tables(record), grids

    def show(at: int) -> str:
        return _grid_html(record, int(at))

    count = gr.State(-1)
    given = dict(inputs=[place, count], outputs=[status, plot, place, picture, checkpoints, count])
    private = dict(api_visibility="private", show_progress="hidden")
    gr.Timer(EVERY).tick(refresh, **given, **private)
    place.release(show, place, picture, **private)
    page.load(refresh, **given, **private)


def _status_html(record: RunRecord) -> str:
    progress, step, total = record.progress or {}, record.step, record.num_train_steps
    share = min(step / total, 1) if total else 0
    facts = [f"step {step:,}" + (f" of {total:,}" if total else "")]
    if progress.get("items_per_second"):
        facts.append(f"{progress['items_per_second']:.0f} {progress['item']}s per second")
    if progress.get("loss") is not None:
        facts.append(f"loss {progress['loss']:.4f}")
    if record.distance is not None:
        name, value = record.distance
        facts.append(f"{name.replace('_', ' ')} {value:.4g}")
    told = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        f'<div class="status"><b class="state {record.state}">{record.state}</b>{told}</div>'
        f'<div class="bar"><div style="width:{100 * share:.1f}%"></div></div>'
    )


def _losses(record: RunRecord) -> pd.DataFrame:
    """The losses of the training and of the validation by their steps."""
    rows, curves = [], record.curves()
    for name, told in CURVES.items():
        points = curves.get(name, [])
        stride = -(-len(points) // MAX_POINTS) or 1
        kept = points[::-1][::stride][::-1]
        rows += [dict(step=step, loss=value, curve=told) for step, value in kept]
    return pd.DataFrame(rows, columns=["step", "loss", "curve"])


def _grid_html(record: RunRecord, at: int) -> str:
    """The grid of a place among all, with what was measured at its step."""
    grids = list(record.grids.items())
    if not grids:
        return "<p>No grid is drawn yet.</p>"
    step, file = grids[min(at, len(grids) - 1)]
    facts = [f"step {step:,}"]
    losses = {point.step: point.validation_loss for point in record.checkpoints}
    if losses.get(step) is not None:
        facts.append(f"validation loss {losses[step]:.4f}")
    if step in record.distances:
        facts.append(f"distance {record.distances[step]:.4g}")
    try:
        return picture_html(file.read_bytes(), ", ".join(facts))
    except OSError as error:
        return f"<p>{escape(str(error))}</p>"


def _tables(record: RunRecord) -> str:
    """The checkpoints, and the settings that were tuned."""
    distances, best = record.distances, record.best_step
    rows = [
        (
            f"{point.step:,}" + (" (best)" if point.step == best else ""),
            "" if point.validation_loss is None else f"{point.validation_loss:.4f}",
            f"{distances[point.step]:.4g}" if point.step in distances else "",
        )
        for point in record.checkpoints
    ]
    head = ("checkpoint", "validation loss", "distance")
    shown = table_html(head, rows) if rows else "<p>No checkpoint is saved yet.</p>"
    if record.generation:
        tuned = [(name.replace("_", " "), value) for name, value in record.generation.items()]
        shown += "<h3>Generation settings</h3>" + table_html(("setting", "value"), tuned)
    return shown
