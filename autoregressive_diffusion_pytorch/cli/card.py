"""What a model card tells of a run."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.record import RunRecord
from ..utils.manifests import step_of, validation_loss
from ..utils.text import printable
from .reproduce import train_command

if TYPE_CHECKING:
    from ..models.image import ImageAutoregressive
    from ..models.sequence_model import SequenceModel

LIKELIHOODS = dict(
    bits_per_dim="bits per dimension",
    nats_per_dim="nats per dimension of latents",
    nats_per_token="nats per token",
)


def card_of(
    config: dict[str, Any],
    run_folder: Path,
    checkpoint: Path,
    model: ImageAutoregressive | SequenceModel,
) -> dict[str, Any]:
    """The `model_card_kwargs` of `save_pretrained` for the model of a checkpoint."""
    name = printable(run_folder.resolve().name)
    card = dict(title=f"{name}: {config['head']}", classes=config["classes"])
    card |= dict(training=_training_facts(config, checkpoint))
    card |= dict(metrics=_metrics(config, run_folder, checkpoint, model))
    sample = shlex.join(["ardiff", "sample", f"runs/{name}", "--checkpoint"])
    sample = f"{sample} {step_of(checkpoint)}"
    train = train_command(config, name)
    card |= dict(commands=[sample] if train is None else [train, sample])
    grids = RunRecord(run_folder).grids
    drawn = [step for step in grids if step <= step_of(checkpoint)]
    return card | (dict(grid=grids[max(drawn)]) if drawn else {})


def _training_facts(config: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    trainer, kind = config["trainer"], _items(config)
    facts = {
        kind: printable(Path(config["source"]).name),
        "steps": f"{step_of(checkpoint):,}",
        f"{kind} per step": f"{trainer['batch_size'] * config['accumulate']} in each process",
        "learning rate": f"{trainer['learning_rate']:g}, {trainer['lr_schedule']}",
        "precision": config["used_precision"],
        "seed": config["seed"],
    }
    if config["from"]:
        facts["fine-tuned from"] = printable(Path(config["from"]).name)
    if config["teacher"]:
        facts["distilled from"] = f"a model with the head {config['teacher']}"
    return facts


def _metrics(
    config: dict[str, Any],
    run_folder: Path,
    checkpoint: Path,
    model: ImageAutoregressive | SequenceModel,
) -> dict[str, str]:
    """The validation loss, and figures of the checkpoint's reports, each of the newest with it."""
    metrics, loss = {}, validation_loss(checkpoint)
    if loss is not None:
        share = f"{config['hold_out']:.1%} of the {_items(config)}"
        metrics["validation loss"] = f"{loss:.4f}, on {share}"
    found = {}
    for file_name, report in RunRecord(run_folder).evaluations:
        if file_name.startswith("report.") and report["checkpoint"] == checkpoint.name:
            found |= _figures(report, model)
    return metrics | found


def _figures(report: dict[str, Any], model: ImageAutoregressive | SequenceModel) -> dict[str, str]:
    """The figures of a report of `ardiff evaluate`, each with what it is of."""
    kind = "images" if "images" in report else "sequences"
    source = printable(Path(report["source"]).name)
    real, figures = f"{report[kind]:,} {kind} ({source})", {}
    for key, name in LIKELIHOODS.items():
        if key in report:
            found = report[key]
            value = f"{found['mean']:.4f} ± {found['standard_error']:.4f}"
            figures[name] = f"{value}, of {real}; {found['density']}"
    if generated := report.get("generated"):
        told = f"of {generated['count']:,} drawn and {real}{_changes(report['sampling'], model)}"
        figures |= {
            key.replace("_", " "): f"{value:.4f}, {told}"
            for key, value in generated.items()
            if isinstance(value, float) and not key.endswith("_std")
        }
    return figures


def _changes(sampling: dict[str, Any], model: ImageAutoregressive | SequenceModel) -> str:
    """What a report drew with in place of the model's generation settings; and with a network."""
    from ..models.settings import GenerationSettings

    own = model.generation.with_given({}, model.head)
    own |= model.head.sampling_settings(**own)
    names = [field.name for field in fields(GenerationSettings)]
    told = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in sampling.items()
        if name in names and value is not None and value != own.get(name)
    ]
    features = sampling.get("features", "none")
    if features != "none":
        told.append(f"features of {printable(Path(features).name)}")
    return "".join(f"; {part}" for part in told)


def _items(config: dict[str, Any]) -> str:
    """What a run is trained on, in a word."""
    return "sequences" if config["kind"] == "sequences" else "images"
