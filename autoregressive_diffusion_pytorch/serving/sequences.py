"""A model of sequences: plots that grow, and the tab to go on from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from torch import Tensor

from ..data.sequence_plots import sequences_figure
from ..utils.text import printable
from .drawing import NOTHING_YET, ON_MODEL, buttons, figure_bytes, frames, told
from .options import Widgets
from .pictures import data_uri, download_link, file_of, picture_html, zip_of_sequences
from .served import Request, Served

FRAME = 0.5  # seconds between plots that grow
PLAYED = 8  # sequences of audio that can be heard


def continue_tab(served: Served, page: gr.Blocks) -> None:
    longest = served.model().max_seq_len
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload = gr.File(
                label=f"Sequence ({served.format.ending})",
                file_types=[served.format.ending],
                type="filepath",
                height=110,
                elem_id="sequence-to-continue",
            )
            keep = gr.Slider(0, longest, longest // 2, step=1, label="Tokens to keep")
            counted = "Continuations" if served.classes is None else "Continuations of each class"
            button, stop = buttons("Go on", "Stop")
            widgets = Widgets(served, page, 4, counted)
        with gr.Column(scale=3, min_width=320, elem_classes="shown"):
            output = gr.HTML(NOTHING_YET, elem_id="continued")

    def go_on(file: str | None, keep: int, *values: Any) -> Iterator[str]:
        with told(file):
            if file is None:
                raise ValueError("upload a sequence first: it is what is gone on from")
            request, prompt = widgets.request(values), served.read_sequence(file)[: int(keep)]
            yield from growing_plots(served, request, prompt)

    given = dict(inputs=[upload, keep, *widgets.components], outputs=output, **ON_MODEL)
    event = button.click(go_on, api_visibility="private", **given)
    stop.click(None, cancels=[event], api_visibility="private")


def growing_plots(served: Served, request: Request, prompt: Tensor | None = None) -> Iterator[str]:
    for seqs, is_last in frames(served.sequences(request, prompt), FRAME):
        yield _plot_html(served, request, seqs, is_last, 0 if prompt is None else len(prompt))


def _plot_html(
    served: Served, request: Request, seqs: Sequence[Tensor], is_last: bool, known: int
) -> str:
    """A plot of sequences; with the last one links to their files, and audio to be heard."""
    names = served.names_of(request.labels)
    titles = [""] * len(seqs)
    if names:
        titles = [name for name in names for _ in range(len(seqs) // len(names))]
    data, links, audio = figure_bytes(sequences_figure(seqs, titles, known)), [], ""
    caption = f"seed {request.seed}"
    if served.command is not None and known == 0:
        caption = served.command(request)
    if is_last:
        stem = printable(f"{served.name}-seed{request.seed}")
        files = zip_of_sequences(seqs, served.format)
        links = [download_link(files, f"{stem}.zip", "Download files", "application/zip")]
        if served.format.ending == ".wav":
            heard = [data_uri(file_of(seq, served.format), "audio/wav") for seq in seqs[:PLAYED]]
            audio = "".join(f'<audio controls src="{uri}"></audio>' for uri in heard)
    return picture_html(data, caption, links, kind="chart") + audio
