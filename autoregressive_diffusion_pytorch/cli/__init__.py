"""The command line, `ardiff`: one module per command.

A run is one folder: `config.json`, `checkpoints/`, `samples/`, `logs/`, `progress.json`,
`evaluation/` and, once tuned, `generation.json`.
"""

from __future__ import annotations

import sys

import click

from .check import check
from .compare import compare
from .complete import complete
from .distill import distill
from .encode import encode
from .evaluate import evaluate
from .export import export
from .fill import fill
from .resume import resume
from .runs import runs
from .sample import sample
from .serve import serve, watch
from .train import train
from .train_autoencoder import train_autoencoder
from .tune import tune


@click.group()
@click.version_option(package_name="autoregressive-diffusion-pytorch")
def main() -> None:
    """Train models that draw images token by token, and draw images with them."""
    if hasattr(sys.stdout, "reconfigure"):  # names of files that are not UTF-8 are written as is
        sys.stdout.reconfigure(errors="surrogateescape")


COMMANDS = (
    *(check, train, resume, distill, sample, complete, fill, evaluate, tune, export),
    *(train_autoencoder, encode, serve, watch, runs, compare),
)
for command in COMMANDS:
    main.add_command(command)
