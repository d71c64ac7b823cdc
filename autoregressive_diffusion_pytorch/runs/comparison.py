"""Runs side by side: the settings that differ, what was measured, loss curves and samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.text import printable
from .record import RunRecord
from .summary import steps, training_loss

NONE = "–"
# settings whose name on the command line is another
NAMES = dict(
    num_epochs="epochs",
    max_minutes="minutes",
    save_results_every="sample every",
    num_noise_draws="noise draws",
    num_samples="samples drawn",
    num_images="items",
    augment_horizontal_flip="flip",
    cache_in_memory="cache",
    labels_from_folders="labels",
    predict_end="ends",
    context_drop_prob="context dropout",
    used_precision="precision in use",
    attn_dropout="attention dropout",
    ff_dropout="feed-forward dropout",
    dim_input="token width",
    max_seq_len="longest sequence",
)
FIRST = ("kind", "source", "head", "order", "model", "trainer", "dataset")  # of all sections
ELSEWHERE = {"num_classes", "num_train_steps"}  # told by `classes`, and among the numbers
# runs that differ in one of these have losses of different things
LOSS_DEPENDS_ON = {"kind", "source", "head", "order", "image size", "patch size", "channels"}
LOSS_DEPENDS_ON |= {"token width", "autoencoder", "frame"}
# names of what reports hold, and whether less or more of it is better
MEASURES: dict[str, tuple[str, Any]] = dict(
    bits_per_dim=("bits per dimension", min),
    nats_per_dim=("nats per dimension of latents", None),
    nats_per_token=("nats per token", None),
    frechet_distance=("Fréchet distance", min),
    kernel_distance=("kernel distance", min),
    precision=("precision", max),
    recall=("recall", max),
    inception_score=("Inception score", max),
    sliced_wasserstein=("sliced Wasserstein distance", min),
    quantile_error=("quantile error", min),
    autocorrelation_error=("autocorrelation error", min),
    length_distance=("distance of lengths", min),
)
LIKELIHOODS = ("bits_per_dim", "nats_per_dim", "nats_per_token")


@dataclass
class Row:
    """A row of a table: its name, a text for each run, and which run is the best, if any."""

    name: str
    texts: list[str]
    best: int | None = None


@dataclass
class Comparison:
    """Runs side by side; what is a list has an entry for each run.

    Attributes:
        names: the folders' names, or their paths where two are the same.
        settings: those that differ.
        numbers: what was counted and measured.
        losses, validation_losses: steps and values.
        grids: the step and the file of a picture of samples, or None.
        notes: what must be known to compare the numbers.
    """

    names: list[str]
    settings: list[Row]
    numbers: list[Row]
    losses: list[list[tuple[int, float]]]
    validation_losses: list[list[tuple[int, float]]]
    grids: list[tuple[int, Path] | None]
    notes: list[str]


def compare_runs(folders: Sequence[str | Path], step: int | None = None) -> Comparison:
    """Compares runs, also of different kinds.

    Args:
        step: of the pictures of samples; by default the last of the run that has come least far,
            where all have one of it, or else the last of each.

    Raises:
        ValueError: if one is not a run, or has no picture of that step.
    """
    runs = [RunRecord(folder) for folder in folders]
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    names = list(map(printable, names))
    settings = _differing(list(map(settings_of, _configs(runs))))
    apart = [row.name for row in settings if row.name in LOSS_DEPENDS_ON]
    measured = [_measured(run) for run in runs]
    bases = {basis for found in measured for basis in found.bases}
    numbers = _numbers(runs, measured, losses_compare=not apart, measures_compare=len(bases) <= 1)
    notes = []
    if apart:
        notes.append(f"Losses do not compare: the runs differ in {', '.join(apart)}.")
    if len(bases) > 1:
        notes.append("Measurements do not compare: they are of other data or numbers of samples.")
    curves = [run.curves() for run in runs]
    return Comparison(
        names,
        settings,
        numbers,
        [found.get("loss_average", []) for found in curves],
        [found.get("validation_loss", []) for found in curves],
        _grids(names, [run.grids for run in runs], step),
        notes,
    )


# settings


def _configs(runs: list[RunRecord]) -> list[dict[str, Any]]:
    """The configurations of runs, with the defaults of their models if those of all are known.

    A run that was trained tells only what was chosen, a distilled one all arguments of its model.
    """
    configs, arguments = [run.config for run in runs], [run.arguments for run in runs]
    if not all(arguments):
        return configs
    return [
        config | dict(model=_filled(config["model"], defaults))
        for config, defaults in zip(configs, arguments, strict=True)
    ]


def _filled(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What was given, and what it leaves open, also in dictionaries within."""
    filled = dict(given)
    for name, default in defaults.items():
        value = filled.setdefault(name, default)
        if isinstance(value, dict) and isinstance(default, dict):
            filled[name] = _filled(value, default)
    return filled


def settings_of(config: dict[str, Any]) -> dict[str, str]:
    """The settings of a run in words, by the names that users know them by."""
    found: dict[str, str] = {}
    first = {section: config[section] for section in FIRST}
    for path, value in _leaves(first | config):
        name = NAMES.get(path[-1], path[-1].replace("_", " "))
        if path[0] == "format":  # of files, which have channels, too
            name = f"{name} of files"
        if path[0] == "model" and path[-1] == "num_samples":  # of the energy score, not of grids
            name = "samples per token"
        if path[-1] not in ELSEWHERE:
            found.setdefault(name, _text(value))
    return found


def _leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        texts = list(map(_text, value))
        shown = texts if len(texts) <= 3 else [texts[0], "…", f"{texts[-1]} ({len(texts)})"]
        return ", ".join(shown) or NONE
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _differing(settings: list[dict[str, str]]) -> list[Row]:
    """The settings that differ, but for those that only other kinds of runs or heads have."""
    kinds = {(found["kind"], found["head"]): set() for found in settings}
    for found in settings:
        kinds[found["kind"], found["head"]] |= found.keys()
    names = (name for found in settings for name in found)
    rows = [
        Row(name, [found.get(name, NONE) for found in settings])
        for name in dict.fromkeys(names)
        if all(name in known for known in kinds.values())
    ]
    return [row for row in rows if len(set(row.texts)) > 1]


# numbers


@dataclass
class _Measured:
    """What reports hold by name, and what it is of: data, how many, and how many samples."""

    values: dict[str, float]
    bases: set[tuple]
    num_samples: int | None = None


def _measured(run: RunRecord) -> _Measured:
    """The newest of each in reports; of sequences without one, what was logged of samples."""
    found = _Measured({}, set())
    for _, report in reversed(run.evaluations):
        generated = report.get("generated", {})
        known = {key: report[key]["mean"] for key in LIKELIHOODS if key in report}
        known |= {key: value for key, value in generated.items() if key in MEASURES}
        if known.keys() <= found.values.keys():
            continue
        found.values = known | found.values
        found.num_samples = found.num_samples or generated.get("count")
        size = report.get("images", report.get("sequences"))
        found.bases.add((report.get("source"), size, generated.get("count")))
    if found.num_samples is None:
        curves = run.curves()
        found.values |= {key: curves[key][-1][1] for key in MEASURES if key in curves}
    return found


def _numbers(
    runs: list[RunRecord], measured: list[_Measured], losses_compare: bool, measures_compare: bool
) -> list[Row]:
    lowest = min if losses_compare else None
    rows = [
        Row("parameters", [_maybe(run.num_parameters, ",") for run in runs]),
        Row("steps", [steps(run.step, run.num_train_steps) for run in runs]),
        Row("state", [run.state for run in runs]),
        _row("training loss", list(map(training_loss, runs)), lowest),
        _row("validation loss", list(map(_lowest, runs)), lowest),
    ]
    for key, (name, better) in MEASURES.items():
        values = [found.values.get(key) for found in measured]
        rows.append(_row(name, values, better if measures_compare else None))
    counts = [_maybe(found.num_samples, ",") for found in measured]
    rows += [Row("samples measured", counts), Row("speed", list(map(_speed, runs)))]
    return [row for row in rows if set(row.texts) != {NONE}]


def _maybe(value: float | None, format: str) -> str:
    return NONE if value is None else f"{value:{format}}"


def _row(name: str, values: list[float | None], better: Any) -> Row:
    known = [value for value in values if value is not None]
    best = None
    if better is not None and len(known) > 1 and known.count(better(known)) == 1:
        best = values.index(better(known))
    return Row(name, [_maybe(value, ".4g") for value in values], best)


def _lowest(run: RunRecord) -> float | None:
    losses = (point.validation_loss for point in run.checkpoints)
    return min((loss for loss in losses if loss is not None), default=None)


def _speed(run: RunRecord) -> str:
    progress = run.progress
    if progress is not None and progress["items_per_second"] is not None:
        return f"{progress['items_per_second']:,.0f} {progress['item']}s/s"
    for name, values in run.curves().items():
        if name.endswith("s_per_second"):
            return f"{values[-1][1]:,.0f} {name.removesuffix('_per_second')}/s"
    return NONE


# samples


def _grids(
    names: list[str], grids: list[dict[int, Path]], step: int | None
) -> list[tuple[int, Path] | None]:
    if step is not None:
        for name, found in zip(names, grids, strict=True):
            if step not in found:
                drawn = ", ".join(map(str, found)) or "none"
                raise ValueError(f"step {step} has no samples of {name}, only the steps {drawn}")
        return [(step, found[step]) for found in grids]
    least = min(max(found, default=0) for found in grids)
    at_once = all(least in found for found in grids)
    chosen = [least if at_once else max(found, default=0) for found in grids]
    return [(at, found[at]) if found else None for at, found in zip(chosen, grids, strict=True)]
