"""The tabs of a model of images: draw, complete, surprise."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d
from torchvision.transforms.functional import to_pil_image

from ..data.image_grids import image_grid
from ..evaluation.plots import surprise_figure
from ..utils.text import printable
from .options import Widgets
from .pictures import download_link, picture_html, png_bytes, zip_of_images
from .served import Request, Served

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# events that use the model wait for each other
ON_MODEL = dict(concurrency_id="model", concurrency_limit=1)
ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError)
FRAME = 0.1  # seconds between pictures that grow
CANVAS = 384  # pixels of what is painted on, at least
ROWS, PAINTED = "below the rows to keep", "where I paint"
NOTHING_YET = "<p>What is drawn appears here.</p>"
PREVIEW = "Upload an image: it is scaled and cropped as the model's are."

T = TypeVar("T")


@contextmanager
def told(file: str | None = None) -> Iterator[None]:
    """Errors of what was asked for are told in the browser, in their own words.

    Args:
        file: that was uploaded, which they call by its name alone.
    """
    try:
        yield
    except (*ERRORS, torch.OutOfMemoryError) as error:
        message = str(error)
        if file is not None:
            message = message.replace(file, Path(file).name)
        raise gr.Error(message, title="Not possible", print_exception=False) from error


def frames(items: Iterator[T], every: float = FRAME) -> Iterator[tuple[T, bool]]:
    """Of items those that come some seconds after the last one shown, and the last of all.

    Each with whether it is the last of all.
    """
    shown, item = -every, None
    for item in items:
        if time.monotonic() - shown >= every:
            shown = time.monotonic()
            yield item, False
    if item is not None:
        yield item, True


def draw_tab(
    served: Served,
    page: gr.Blocks,
    count: int,
    counted: str,
    growing: Callable[[Served, Request], Iterator[str]],
) -> None:
    """A tab to draw from the model.

    Args:
        count: samples to draw at first.
        counted: what they are.
        growing: shows a request's samples as they grow.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            button, again, stop = buttons("Draw", "Next seed", "Stop")
            widgets = Widgets(served, page, count, counted)
        with gr.Column(scale=3, min_width=320, elem_classes="shown"):
            output = gr.HTML(NOTHING_YET, elem_id="drawn")

    def draw(*values: Any) -> Iterator[str]:
        with told():
            yield from growing(served, widgets.request(values))

    given = dict(inputs=widgets.components, outputs=output, **ON_MODEL)
    event = button.click(draw, api_name="draw", **given)
    event_again = next_seed_of(again, widgets).then(draw, api_visibility="private", **given)
    stop.click(None, cancels=[event, event_again], api_visibility="private")


def growing_grids(served: Served, request: Request) -> Iterator[str]:
    for images, is_last in frames(served.images(request)):
        yield grid_html(served, request, images, is_last)


def complete_tab(served: Served, page: gr.Blocks) -> None:
    model = served.model()
    height, (cell, _) = model.image_size[0], model.tokenizer.cell
    draws_any_order = model.model.draws_any_order
    own, painted = [], None
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload, preview = _upload("image-to-complete")
            if draws_any_order:
                own.append(gr.Radio([PAINTED, ROWS], value=PAINTED, label="Draw anew"))
            keep = gr.Slider(
                0, height - cell, height // cell // 2 * cell, step=cell, label="Rows to keep"
            )
            counted = "Completions" if served.classes is None else "Completions of each class"
            button, stop = buttons("Complete", "Stop")
            widgets = Widgets(served, page, 8, counted)
        with gr.Column(scale=3, min_width=320, elem_classes="shown"):
            if draws_any_order:
                painted = gr.ImageEditor(
                    sources=(),
                    type="numpy",
                    layers=False,
                    transforms=(),
                    brush=gr.Brush(colors=["#ff5500"], default_size=CANVAS // 8),
                    label="Paint what is drawn anew",
                    elem_id="painted",
                )
                own.append(painted)
            output = gr.HTML(NOTHING_YET, elem_id="completed")

    def complete(file: str | None, keep_rows: int, *values: Any) -> Iterator[str]:
        with told(file):
            if file is None:
                raise ValueError("upload an image first: it is what is completed")
            image, region = served.read_image(file), int(keep_rows)
            if draws_any_order:
                region = _mask_of(*values[: len(own)], region, model.image_size)
            request = widgets.request(values[len(own) :])
            for images, is_last in frames(served.completions(image, region, request)):
                yield grid_html(served, request, images, is_last, file)

    inputs = [upload, keep, *own, *widgets.components]
    given = dict(inputs=inputs, outputs=output, **ON_MODEL)
    event = button.click(complete, api_visibility="private", **given)
    stop.click(None, cancels=[event], api_visibility="private")
    _show_uploaded(served, upload, preview, painted)


def surprise_tab(served: Served) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload, preview = _upload("image-to-measure")
            label = None
            if served.classes is not None:
                choices = [(name, i) for i, name in enumerate(served.classes)]
                label = gr.Dropdown(choices, value=0, label="As a picture of")
            (button,) = buttons("Map the surprise")
        with gr.Column(scale=3, min_width=320, elem_classes="shown"):
            output = gr.HTML(NOTHING_YET, elem_id="surprised")

    def measure(file: str | None, label: int | None = None) -> str:
        with told(file):
            if file is None:
                raise ValueError("upload an image first: it is what is measured")
            image = served.read_image(file)
            nats = served.surprise(image, label)
            caption = f"Bright patches surprise the model: {nats.sum():.0f} nats in all."
            figure = surprise_figure(image, nats)
            return picture_html(figure_bytes(figure), caption, kind="chart")

    inputs = [upload] if label is None else [upload, label]
    button.click(measure, inputs, output, api_visibility="private", **ON_MODEL)
    _show_uploaded(served, upload, preview)


def buttons(*texts: str) -> list[gr.Button]:
    """Buttons in a row, the first of which does what the tab is for."""
    with gr.Row():
        kinds = ("primary", *["secondary"] * (len(texts) - 1))
        return [
            gr.Button(text, variant=kind, min_width=80)
            for text, kind in zip(texts, kinds, strict=True)
        ]


def most_at_first(served: Served) -> int:
    """Pictures to draw at first: some of each class."""
    return 16 if served.classes is None else min(4 * len(served.classes), 40)


def _upload(name: str) -> tuple[gr.File, gr.HTML]:
    upload = gr.File(label="Image", file_types=["image"], type="filepath", height=110, elem_id=name)
    return upload, gr.HTML(f"<p>{PREVIEW}</p>", elem_classes="preview")


def _show_uploaded(
    served: Served, upload: gr.File, preview: gr.HTML, painted: gr.ImageEditor | None = None
) -> None:
    """Shows an uploaded image as the model sees it, or lets it be painted on."""

    def show(file: str | None) -> Any:
        if file is None:
            return f"<p>{PREVIEW}</p>" if painted is None else (f"<p>{PREVIEW}</p>", None)
        with told(file):
            picture = _enlarged(to_pil_image(served.read_image(file)[:3]))
            if painted is None:
                return picture_html(png_bytes(picture), "as the model sees it")
            editor = dict(background=np.asarray(picture.convert("RGB")), layers=[], composite=None)
            return "<p>Paint on the picture what is to be drawn anew.</p>", editor

    outputs = preview if painted is None else [preview, painted]
    upload.change(show, upload, outputs, api_visibility="private")


def _enlarged(picture: Image.Image) -> Image.Image:
    times = -(-CANVAS // max(picture.size))
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)


def _mask_of(
    chosen: str, painted: dict[str, Any] | None, keep_rows: int, image_size: tuple[int, int]
) -> Tensor:
    """True for the pixels (h w) to draw: those that paint touches, or below the rows to keep."""
    if chosen == ROWS:
        below = torch.arange(image_size[0]) >= keep_rows
        return below.unsqueeze(1).expand(image_size)
    layers = (painted or {}).get("layers") or []
    opaque = [torch.from_numpy(layer[..., 3].copy()) > 0 for layer in layers if layer is not None]
    if not any(bool(layer.any()) for layer in opaque):
        raise ValueError("paint on the picture what is to be drawn anew: nothing is painted yet")
    touched = torch.stack(opaque).any(dim=0)
    return adaptive_max_pool2d(touched[None].float(), image_size)[0] > 0.5


def next_seed_of(button: gr.Button, widgets: Widgets) -> Any:
    """The event of a button that chooses the next seed."""
    seed = widgets.own["seed"]

    def following(given: float | None) -> int:
        return int(given or 0) + 1

    return button.click(following, seed, seed, queue=False, api_visibility="private")


def figure_bytes(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def grid_html(
    served: Served, request: Request, images: Tensor, is_last: bool, file: str | None = None
) -> str:
    """A grid of images; with the last one links to its files."""
    names = served.names_of(request.labels)
    columns = len(images) // request.rows if names else None
    picture = image_grid(images, columns, names)
    settings, links = _settings(served, request, file), []
    data = png_bytes(picture, settings)
    if is_last:
        stem = printable(f"{served.name}-seed{request.seed}")
        links = [
            download_link(data, f"{stem}.png", "Download picture"),
            download_link(
                zip_of_images(images.cpu(), settings),
                f"{stem}.zip",
                "Download each",
                "application/zip",
            ),
        ]
    return picture_html(data, settings.get("command", f"seed {request.seed}"), links)


def _settings(served: Served, request: Request, file: str | None) -> dict[str, Any]:
    """What a picture's file tells of how it was drawn."""
    settings = dict(model=served.name, seed=request.seed, count=request.count)
    settings |= dict(labels=served.names_of(request.labels), step=request.step)
    settings |= request.options
    if file is not None:
        settings["completes"] = Path(file).name
    elif served.command is not None:
        settings["command"] = served.command(request)
    return {name: value for name, value in settings.items() if value is not None}
