"""What several commands share: kinds of options, and errors as one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from ..heads import HEADS

COUNT = click.IntRange(1)
FACTOR = click.FloatRange(0)
POSITIVE = click.FloatRange(0, min_open=True)
SEED = click.IntRange(0, 2**31 - 1)
OUTPUT = click.Path(path_type=Path)
RUN = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError)


class HeadType(click.ParamType):
    """The name of a head, or MODULE:CLASS, whose module is imported."""

    name = "head"

    def convert(self, value: str, parameter, context) -> str:
        if value in HEADS:
            return value
        if ":" not in value:
            self.fail(f"{value!r} is none of {', '.join(HEADS)}, nor MODULE:CLASS")
        from ..heads.head import head_class

        sys.path.insert(0, os.getcwd())  # as for a script that lies there
        try:
            import_module(value.partition(":")[0])
            head_class(value)
        except (ImportError, ValueError) as error:
            self.fail(str(error))
        return value


def option(flags: str, type=None, help: str = "", name: str | None = None, **kwargs) -> Callable:
    """An option of a command, of this name as an argument; its help says the default."""
    names = (flags,) if name is None else (flags, name)
    return click.option(*names, type=type, help=help, show_default=True, **kwargs)


def flag(flags: str, help: str, name: str | None = None, **kwargs) -> Callable:
    return option(flags, None, help, name, is_flag=True, **kwargs)


def add_options(*options: Callable) -> Callable:
    """A decorator that gives a command these options, in their order."""

    def decorate(command: Callable) -> Callable:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


OWN_HEAD = "The head of RUN, if it is your own: its module is imported."
own_head_option = option("--head", HeadType(), OWN_HEAD, metavar="MODULE:CLASS", expose_value=False)
run_argument = add_options(click.argument("run_folder", metavar="RUN", type=RUN), own_head_option)
checkpoint_option = option(
    "--checkpoint", COUNT, "Step of the checkpoint. [default: lowest validation loss, else newest]"
)
max_pixels_option = option(
    "--max-pixels", COUNT, "The largest image to read, width times height.", default=500_000_000
)
precision_option = option(
    "--precision",
    click.Choice(["auto", "no", "bf16", "fp16"]),
    "Mixed precision; auto is bf16 where the device has instructions for it.",
    default="auto",
)
drawing_precision_option = option(
    "--precision",
    click.Choice(["auto", "no", "bf16", "int8"]),
    "bf16 rounds the weights; auto does where the device has instructions for it. int8 is for few "
    "samples of a large model, on a CPU.",
    default="auto",
)
workers_option = option(
    "--workers", click.IntRange(0), "Processes that read images in advance.", default=0
)
minutes_option = option(
    "--minutes", POSITIVE, "End after this time, even if steps are left.", "max_minutes"
)
seed_option = option("--seed", SEED, "Of all noise.", default=0)


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Keeps a value in the context: it is of the call alone, and no part of a run."""
    if value and find_spec("gradio") is None:
        raise click.ClickException(
            "--serve needs gradio: pip install 'autoregressive-diffusion-pytorch[serve]'"
        )
    context.meta[parameter.name] = value


serve_option = flag(
    "--serve",
    "Show the training on a page in the browser, too, as `ardiff watch` does.",
    "serves",
    callback=_remember,
    expose_value=False,
)


@contextmanager
def one_line_errors(kinds: tuple[type[Exception], ...] = ERRORS) -> Iterator[None]:
    """Errors of these kinds end the command with their message alone."""
    try:
        yield
    except kinds as error:
        raise click.ClickException(in_options(str(error))) from error


# what else Python's errors speak of
PHRASES = {
    r"resume = True goes on from there, another folder starts anew": "`ardiff resume` goes on",
    r"a model with num_classes or dim_cond": "a run that was trained with --labels",
    r"num_classes makes one with them": "--labels makes one with them",
    r"the model was made with num_classes = \d+": "the run was trained with --labels",
    r"a\s+context_drop_prob above 0": "context dropout",
    r"frame, the number of samples": "--frame, the number of samples",
    r"a model that is made with predict_end = True": "a run that was trained with --ends",
}
NAMES = dict(
    num_workers="--workers",
    mixed_precision="--precision",
    dynamo_backend="--compile",
    weight_decay="--weight-decay",
    checkpoints_folder="folder",
    results_folder="folder",
    logs_folder="folder",
)


def in_options(message: str) -> str:
    """A message of Python's arguments in words of the command line's options."""
    for phrase, words in PHRASES.items():
        message = re.sub(phrase, words, message)
    for name, flags in (NAMES | _options()).items():
        if "_" not in name:  # a word, as a rule
            continue
        alone = rf"(?<![\w/.'\"-]){name}(?![\w/'\"-]|\.\w)"
        message = re.sub(rf"{alone} = True", flags, message)
        message = re.sub(rf"{alone} = ('?)([\w.]+)\1", rf"{flags} \2", message)
        message = re.sub(alone, flags, message)
    return message


def _options() -> dict[str, str]:
    """The options by the names of their arguments: all commands', and before them this one's."""
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    commands = getattr(context.find_root().command, "commands", {}).values()
    return {
        parameter.name: parameter.opts[0]
        for command in (*commands, context.command)
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
