"""`ardiff serve` and `ardiff watch`: pages in a browser."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..utils.text import printable
from .options import (
    add_options,
    checkpoint_option,
    drawing_precision_option,
    flag,
    one_line_errors,
    option,
    own_head_option,
    run_argument,
)
from .run import checkpoint_of, load_model, read_config
from .sequences import format_of_run

if TYPE_CHECKING:
    from ..serving.served import Request, Served

page_options = add_options(
    option(
        "--host",
        None,
        "Address to listen at. The default can be opened on this machine alone, 0.0.0.0 on all "
        "that reach it.",
        default="127.0.0.1",
    ),
    option("--port", click.IntRange(1, 65535), "[default: the first from 7860 that is free]"),
    flag("--open", "Open the page in a browser.", "opens"),
)


@click.command(short_help="Draw with a trained model on a page in the browser.")
@click.argument("model", metavar="RUN_OR_MODEL")
@own_head_option
@checkpoint_option
@drawing_precision_option
@page_options
def serve(
    model: str, checkpoint: int | None, precision: str, host: str, port: int | None, opens: bool
) -> None:
    """Serve a page to draw with a model: the run RUN_OR_MODEL, a model's folder, or its name on
    the Hugging Face Hub. Pictures grow token by token; images that are uploaded are completed, and
    show where they surprise the model. Of a run it shows the training, too.

    It ends with Ctrl-C or SIGTERM.
    """
    from ..serving.environment import gradio_environment
    from ..utils.modes import best_precision

    is_run = any((Path(model) / name).is_dir() for name in ("checkpoints", "logs"))
    with one_line_errors(), gradio_environment():
        from ..serving.page import model_page
        from ..serving.server import free_port

        port = free_port(host, port)
        precision = best_precision() if precision == "auto" else precision
        served = (served_run if is_run else served_model)(Path(model), checkpoint, precision)
        _serve(model_page(served), host, port, opens)


@click.command(short_help="Look at a run in the browser while it is trained.")
@run_argument
@page_options
def watch(run_folder: Path, host: str, port: int | None, opens: bool) -> None:
    """Serve a page that shows the progress, losses, grids and checkpoints of RUN, and refreshes by
    itself.
    """
    from ..runs.record import RunRecord
    from ..serving.environment import gradio_environment

    read_config(run_folder)
    with one_line_errors(), gradio_environment():
        from ..serving.page import run_page
        from ..serving.server import free_port

        _serve(run_page(RunRecord(run_folder)), host, free_port(host, port), opens)


@contextmanager
def page_beside(run_folder: Path) -> Iterator[None]:
    """`ardiff watch` as a process of its own, which ends with the block."""
    command = [sys.executable, "-m", __package__.partition(".")[0], "watch", str(run_folder)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _serve(page: Any, host: str, port: int, opens: bool) -> None:
    from ..serving.server import serve

    shown = "127.0.0.1" if host == "0.0.0.0" else host
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

    def started() -> None:
        click.echo(f"{url} (Ctrl-C ends it)")
        if opens:
            click.launch(url)

    serve(page, host, port, started)


def served_run(run_folder: Path, checkpoint: int | None, precision: str) -> Served:
    from ..runs.record import RunRecord
    from ..serving.served import Served

    config = read_config(run_folder)
    is_sequences = config["kind"] == "sequences"

    def load(step: int | None):
        try:
            folder = checkpoint_of(run_folder, checkpoint if step is None else step)
            return load_model(config, folder)[0]
        except click.ClickException as error:  # told in the browser, once the page is served
            raise ValueError(error.message) from error

    return Served(
        name=printable(run_folder.resolve().name),
        load=load,
        classes=config["classes"] and [printable(name) for name in config["classes"]],
        format=format_of_run(config) if is_sequences else None,
        record=RunRecord(run_folder),
        command=_command_of(run_folder, config["classes"]),
        precision=precision,
    )


def served_model(folder: Path, checkpoint: int | None, precision: str) -> Served:
    from ..data.sequence_files import SequenceFormat
    from ..models.hub import class_names
    from ..models.presets import load_pretrained
    from ..models.sequence_model import SequenceModel
    from ..serving.served import Served

    if checkpoint is not None:
        raise click.UsageError("--checkpoint is of runs: RUN_OR_MODEL is a model")
    model = load_pretrained(str(folder))
    is_sequences = isinstance(model, SequenceModel)
    count = (model if is_sequences else model.model).conditioning.num_classes
    numbers = None if count is None else [str(i) for i in range(count)]
    return Served(
        name=folder.resolve().name if folder.exists() else str(folder),
        load=lambda _: model,
        classes=class_names(folder) or numbers,
        format=SequenceFormat(".npy") if is_sequences else None,
        precision=precision,
    )


def _command_of(run_folder: Path, classes: list[str] | None) -> Callable[[Request], str]:
    """The command line of `ardiff sample` that draws a request."""
    from .sample import sample

    flags = {parameter.name: parameter.opts[0] for parameter in sample.params}

    def command(request: Request) -> str:
        words = ["ardiff", "sample", printable(str(run_folder)), "--count", str(request.count)]
        words += ["--seed", str(request.seed)]
        if request.step is not None:
            words += ["--checkpoint", str(request.step)]
        if request.labels is not None and len(request.labels) < len(classes):
            for label in request.labels:
                name = classes[label]
                words += ["--label", name if name == printable(name) else str(label)]
        for name, value in request.options.items():
            values = value if isinstance(value, (tuple, list)) else (value,)
            words += [flags[name], *map(str, values)]
        return shlex.join(words)

    return command
