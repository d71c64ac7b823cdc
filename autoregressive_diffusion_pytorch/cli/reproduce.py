"""The command that gives the configuration of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ..utils.text import printable
from .configuration import (
    DATASET,
    IMAGES,
    MODEL,
    RUN,
    SEQUENCE_DATASET,
    SIZES,
    TRAINER,
    defaults_of,
)
from .run import sequence_model_class_of
from .sources import is_built_in
from .train import train

# what a cache of `ardiff encode` decides
OF_CACHE = {*IMAGES, *DATASET} - {"patch_size", "labels_from_folders"}
# and a model that is trained on
OF_MODEL = {*MODEL, "head", "order", "channels", "patch_size", "dropout"}


def train_command(config: dict[str, Any], run_name: str) -> str | None:
    """`ardiff train` with the options in which a run's configuration differs from the defaults.

    Folders are told by their names alone. None for a run of `ardiff distill`.
    """
    if config["teacher"] is not None:
        return None
    sizes = [None, *SIZES] if config["from"] is None else [_size_near(config)]
    options = min((_options(config, size) for size in sizes), key=len)
    words = ["ardiff", "train", _name(config["source"]), *options, "--run", f"runs/{run_name}"]
    return shlex.join(words)


def _options(config: dict[str, Any], size: str | None) -> list[str]:
    """The words of the options, if the model's size is one of `SIZES` or the source's own."""
    told, source = _told(config), config["source"]
    options = train.make_context("train", ["digits"]).params
    options |= dict(size=size, order=config["order"], num_epochs=told.get("num_epochs"))
    options |= defaults_of(source, config["kind"], options)
    words = []
    if config["from"] is not None:
        words += ["--from", _name(config["from"])]
        words += [word for part in config["freeze"] for word in ("--freeze", part)]
    elif size is not None:
        words += ["--size", size]
    told |= dict(num_epochs=told.get("num_epochs"))
    options |= dict(order="raster", num_epochs=None)  # the defaults of what decides on others
    for parameter in train.params:
        if parameter.name in told and told[parameter.name] != options[parameter.name]:
            words += _words(parameter, told[parameter.name])
    return words


def _words(parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [parameter.opts[0] if value else parameter.secondary_opts[0]]
    is_whole = isinstance(value, float) and value.is_integer()
    return [parameter.opts[0], str(int(value) if is_whole else value)]


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a configuration tells, by the names of their arguments."""
    kind, trainer, model = config["kind"], config["trainer"], config["model"]
    told = {name: config[name] for name in RUN}
    told |= {name: trainer[name] for name in TRAINER if name in trainer}
    told |= dict(weight_decay=trainer.get("adam_kwargs", {}).get("weight_decay"))
    names = SEQUENCE_DATASET if kind == "sequences" else DATASET
    told |= {name: config["dataset"][name] for name in names if name in config["dataset"]}
    if kind == "sequences":
        regularized = model.get("decoder_kwargs") or {}
        told |= dict(dropout=regularized.get("ff_dropout", 0.0))
        names = ("input_noise", "predict_end")
        told |= {name: model[name] for name in names if name in model}
    else:
        told |= {name: model[name] for name in IMAGES}
        model = model["model"]
    told |= {name: model[name] for name in MODEL if name in model}
    own = model.get(sequence_model_class_of(config).head_argument()) or {}
    told |= {name: own[name] for name in ("num_noise_draws",) if name in own}
    of_cache = OF_CACHE if kind == "latents" else set()
    left_out = of_cache | (OF_MODEL if config["from"] is not None else set())
    return {name: value for name, value in told.items() if name not in left_out}


def _size_near(config: dict[str, Any]) -> str:
    """The size whose learning rate is the default of a model that is trained on."""
    model = config["model"] if config["kind"] == "sequences" else config["model"]["model"]
    return min(SIZES, key=lambda name: abs(SIZES[name]["dim"] - model["dim"]))


def _name(source: str) -> str:
    """A source or a model as others know it: no path of this machine."""
    is_path = not is_built_in(source) and Path(source).is_absolute()
    return printable(Path(source).name) if is_path else source
