"""The command line, `ardiff`: one module per command.

A run is one folder: `config.json`, `checkpoints/`, `samples/`, `logs/`, `evaluation/` and, once
tuned, `generation.json`.
"""

from __future__ import annotations

import warnings

import click

from .complete import complete
from .evaluate import evaluate
from .export import export
from .resume import resume
from .sample import sample
from .train import train
from .tune import tune


@click.group()
@click.version_option(package_name="autoregressive-diffusion-pytorch")
def main() -> None:
    """Train models that draw images token by token, and draw images with them."""
    # x-transformers compiles some functions with torch.jit: nothing that a user could change
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


for command in (train, resume, sample, complete, evaluate, tune, export):
    main.add_command(command)
