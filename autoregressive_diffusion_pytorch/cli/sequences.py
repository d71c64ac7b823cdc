"""What `sample`, `complete` and `evaluate` do with a run on sequences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..utils.files import atomic_write_text
from ..utils.text import printable
from .measuring import checkpoint_and_output, data_of
from .options import one_line_errors
from .run import load_model
from .sampling import SamplingRun

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.sequence_files import SequenceFormat


def format_of_run(config: dict[str, Any]) -> SequenceFormat:
    """How a run's sequences are kept in files."""
    from ..data.sequence_files import SequenceFormat

    return SequenceFormat(**config["format"])


def complete_sequence(run: SamplingRun, file: Path, keep: int, count: int, batch_size: int) -> None:
    """Draws the rest of a file's sequence, for each label as often."""
    import torch

    from ..evaluation.drawing import draw_sequences

    with one_line_errors((ValueError, ModuleNotFoundError)):
        seq = format_of_run(run.config).read(file)
    if keep > len(seq):
        raise click.BadParameter(f"{file} has {len(seq)} tokens", param_hint="--keep-rows")
    numbers, drawn, labels = run.numbers(count), [], []
    kwargs = dict(run.sample_kwargs, batch_size=batch_size, seed=run.seed, only=numbers)
    prompt = seq[:keep].unsqueeze(0).to(run.device)
    for label in run.labels or [None]:
        own = None if label is None else torch.full((max(numbers) + 1,), label)
        with one_line_errors((ValueError,)):
            drawn += draw_sequences(run.model, len(numbers), labels=own, prompt=prompt, **kwargs)
        labels += [label] * len(numbers)
    save_sequences(run, drawn, labels if run.labels else None, numbers)


def save_sequences(
    run: SamplingRun, drawn: Sequence[Tensor], labels: Sequence[int] | None, numbers: Sequence[int]
) -> None:
    """Writes sequences as files of the run's kind, with labels a folder for each class."""
    if not run.is_main:
        return
    kind = format_of_run(run.config)
    with one_line_errors((OSError, ModuleNotFoundError)):
        for i, seq in enumerate(drawn):
            folder = run.output
            if labels is not None:
                folder = folder / printable(run.classes[labels[i]])
            kind.write(seq, folder / f"{numbers[i % len(numbers)]}{kind.ending}")
    click.echo(f"{run.output}: {len(drawn)} files")


def report_on_sequences(
    run_folder: Path,
    config: dict[str, Any],
    source: str | None,
    *,
    checkpoint: int | None,
    count: int | None,
    batch_size: int,
    seed: int,
    output: Path | None,
    sample_kwargs: dict[str, Any],
    solver_kwargs: dict[str, Any],
) -> None:
    """`ardiff evaluate` of a run on sequences."""
    from ..evaluation.sequence_report import evaluate_sequences

    folder, output = checkpoint_and_output(run_folder, checkpoint, output, "report", ".json")
    with one_line_errors():
        dataset = data_of(config, source, None)
        model, accelerator = load_model(config, folder)
        report = evaluate_sequences(
            model,
            dataset,
            count=count,
            batch_size=batch_size,
            seed=seed,
            progress=accelerator.is_main_process,
            sample_kwargs=sample_kwargs,
            solver_kwargs=solver_kwargs,
        )
    if not accelerator.is_main_process:
        return
    asked = dict(checkpoint=folder.name, source=source or "held out", seed=seed)
    asked |= dict(batch_size=batch_size, sampling=sample_kwargs)
    with one_line_errors((OSError,)):
        atomic_write_text(output, json.dumps(asked | report, indent=2, allow_nan=False))
    for line in _summary(report):
        click.echo(line)
    click.echo(output)


def _summary(report: dict[str, Any]) -> list[str]:
    lines = []
    if nats := report.get("nats_per_token"):
        figures = f"{nats['mean']:.4f} ± {nats['standard_error']:.4f}"
        told = f"{report['sequences']} sequences; {nats['density']}"
        lines = [f"nats per token         {figures}  ({told})"]
    generated = report.get("generated", {})
    lines += [
        f"{name.replace('_', ' '):22} {value:.4f}"
        for name, value in generated.items()
        if isinstance(value, float)
    ]
    if generated:
        lengths = [generated[which]["mean_length"] for which in ("real", "sampled")]
        lines += [f"mean length            {lengths[1]:.2f}, of real ones {lengths[0]:.2f}"]
        lines += [f"of {generated['count']} drawn sequences"]
    return lines
