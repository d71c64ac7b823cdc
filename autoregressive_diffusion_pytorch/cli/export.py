"""`ardiff export`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from ..utils.files import check_folder
from ..utils.text import printable
from .options import OUTPUT, checkpoint_option, one_line_errors, run_argument
from .run import checkpoint_of, listed, load_model, read_config


@click.command(short_help="Write a trained model into a folder that can be shared.")
@run_argument
@click.argument("folder", metavar="DIR", type=OUTPUT)
@checkpoint_option
def export(run_folder: Path, folder: Path, checkpoint: int | None) -> None:
    """Write the model of RUN into DIR, with a model card and a grid of samples.

    `from_pretrained(DIR)` of the model's class loads it; `hf upload NAME DIR` shares it.
    """
    from ..utils.manifests import step_of

    config = read_config(run_folder)
    source = checkpoint_of(run_folder, checkpoint)
    if folder.is_dir() and any(folder.iterdir()):
        raise click.ClickException(f"{folder} is not empty: name another one")
    with one_line_errors((OSError,)):
        check_folder("DIR", folder)
    title = printable(f"{run_folder.resolve().name}: {config['head']}")
    card = dict(title=title, training=_training_facts(config, source))
    grids = {
        int(path.name.split(".")[1]): path for path in run_folder.glob("samples/results.*.png")
    }
    drawn = [step for step in grids if step <= step_of(source)]
    if drawn:
        card["grid"] = grids[max(drawn)]
    with one_line_errors((OSError,)), tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        model, _ = load_model(config, source)
        model.save_pretrained(Path(partial) / "model", model_card_kwargs=card)
        folder.rmdir()
        (Path(partial) / "model").replace(folder)
    click.echo(folder)


def _training_facts(config: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The facts of a training for a model card."""
    from ..utils.manifests import step_of, validation_loss

    trainer, loss = config["trainer"], validation_loss(checkpoint)
    facts = {
        "images": printable(Path(config["source"]).name),
        "steps": f"{step_of(checkpoint):,}",
        "images per step": f"{trainer['batch_size'] * config['accumulate']} in each process",
        "learning rate": f"{trainer['learning_rate']:g}, {trainer['lr_schedule']}",
        "precision": config["used_precision"],
        "seed": config["seed"],
    }
    if config["from"]:
        facts["fine-tuned from"] = printable(Path(config["from"]).name)
    if config["classes"]:
        facts["labels"] = printable(listed(config["classes"]))
    if loss is not None:
        facts["validation loss"] = f"{loss:.4f}, on {config['hold_out']:.1%} of the images"
    return facts
