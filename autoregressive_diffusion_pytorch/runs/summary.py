"""A run in one row: its facts as plain values, and in words."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..utils.text import printable
from .record import RunRecord


def summary(run: RunRecord) -> dict[str, Any]:
    """What a table of runs says of one, as JSON values.

    `folder`; `kind`, `head`, `order` and `dims`; `parameters`, their number; `step` and
    `num_train_steps`; `loss`, and as `loss_of` what it is ("validation", the lowest of a
    checkpoint, or "training", the running average); `distance` and its `measure`; `updated` (ISO
    8601, UTC) and `state`. What a run has not is None. A run that cannot be read has its `folder`
    and the `error` alone.
    """
    row: dict[str, Any] = dict(folder=str(run.folder))
    try:
        loss_of, loss = loss_and_kind(run)
        measure, distance = run.distance or (None, None)
        return row | dict(
            **run.facts(),
            parameters=run.num_parameters,
            step=run.step,
            num_train_steps=run.num_train_steps,
            loss=loss,
            loss_of=loss_of,
            distance=distance,
            measure=measure,
            updated=run.updated.isoformat(timespec="seconds"),
            state=run.state,
        )
    except (ValueError, OSError) as error:
        return row | dict(error=str(error))


def loss_and_kind(run: RunRecord) -> tuple[str | None, float | None]:
    """The validation loss of the best checkpoint, or else the running average in training."""
    best = run.best_step
    for point in run.checkpoints:
        if point.step == best and best is not None:
            return "validation", point.validation_loss
    loss = training_loss(run)
    return (None, None) if loss is None else ("training", loss)


def training_loss(run: RunRecord) -> float | None:
    """The running average of the loss, by the progress or, of earlier versions, by the log."""
    progress = run.progress or {}
    if progress.get("loss") is not None:
        return progress["loss"]
    logged = run.curves().get("loss_average")
    return logged[-1][1] if logged else None


TABLE = ("name", "kind", "head", "order", "size", "step", "loss", "distance", "when", "state")
MEASURES = dict(frechet_distance="Fréchet", sliced_wasserstein="sliced Wasserstein")


def table(rows: list[dict[str, Any]], folder: Path, now: datetime | None = None) -> list[str]:
    """Lines of a table of summaries, for a terminal.

    Args:
        folder: of which the runs are named below it.
        now: when it is looked at.
    """
    names = [_name(Path(row["folder"]), folder) for row in rows]
    cells = [
        [name, row["error"]] if "error" in row else [name, *_cells(row, now)]
        for name, row in zip(names, rows, strict=True)
    ]
    whole = [texts for texts in cells if len(texts) == len(TABLE)]
    widths = [max(map(len, column)) for column in zip(TABLE, *whole, strict=True)]
    widths[0] = max(widths[0], *map(len, names))
    return [_line(texts, widths) for texts in (TABLE, *cells)]


def _line(texts: tuple[str, ...] | list[str], widths: list[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=False)).rstrip()


def _name(run: Path, folder: Path) -> str:
    name = run.resolve().name if run == folder else str(run.relative_to(folder))
    return printable(name)


def _cells(row: dict[str, Any], now: datetime | None) -> list[str]:
    loss, distance = row["loss"], row["distance"]
    return [
        *(row["kind"], row["head"], row["order"], short_count(row["parameters"])),
        steps(row["step"], row["num_train_steps"]),
        "–" if loss is None else f"{loss:.4f} {row['loss_of']}",
        "–" if distance is None else f"{distance:.4g} {MEASURES[row['measure']]}",
        ago(datetime.fromisoformat(row["updated"]), now),
        row["state"],
    ]


def steps(step: int, last: int | None) -> str:
    return f"{step:,}" if last is None else f"{step:,} / {last:,}"


def short_count(count: int | None) -> str:
    """A number in few digits: "950", "1.2 k", "1.2 M", "120 M", "1.2 B"."""
    if count is None:
        return "–"
    number, unit = float(count), ""
    for larger in ("k", "M", "B"):
        if number < 999.5:
            break
        number, unit = number / 1000, f" {larger}"
    return f"{number:.0f}{unit}" if not unit or number >= 99.95 else f"{number:.1f}{unit}"


def ago(when: datetime, now: datetime | None = None) -> str:
    """How long ago a time was, in words; the date where that is a week or more."""
    seconds = ((now or datetime.now(timezone.utc)) - when).total_seconds()
    if seconds < 60:
        return "just now"
    for unit, length, most in (("min", 60, 60), ("h", 3600, 24), ("days", 86400, 7)):
        count = int(seconds / length)
        if count < most:
            return f"{count} {'day' if unit == 'days' and count == 1 else unit} ago"
    return when.astimezone().date().isoformat()
