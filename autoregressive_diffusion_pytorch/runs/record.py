"""RunRecord: what the folder of a run tells, whether it is being trained or not."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..utils.manifests import list_checkpoints, step_of, validation_loss
from .config import read_config
from .events import EventFiles

State = Literal["running", "stopped", "ended"]
Result = TypeVar("Result")

PARTS = ("checkpoints", "logs", "samples", "progress.json")  # one of which a run has at least
# of which an optional one may be None
PROGRESS = dict.fromkeys(("state", "item", "host", "started", "updated"), str)
PROGRESS |= dict.fromkeys(("step", "num_train_steps", "pid"), int)
PROGRESS |= dict.fromkeys(("items_per_second", "loss"), int | float | None)
SILENCE = timedelta(minutes=10)  # after which a training on another machine counts as stopped
DISTANCES = ("frechet_distance", "sliced_wasserstein")  # the first that was measured
LONGEST_HEADER = 100_000_000  # bytes, as of the safetensors library
# buffers that lie among the weights
BUFFERS = re.compile(
    r"(.*\.)?(head\.(sigma_data|components)|end_head\.balance|normalization\.(mean|scale))"
)


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint: its step, its folder, and its validation loss if it has one."""

    step: int
    folder: Path
    validation_loss: float | None


class RunRecord:
    """The folder of a run, to be looked at. Each access tells what it holds by then.

    Nothing is written, and torch is not imported.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._events = EventFiles(self.folder / "logs")
        self._known: dict[Path, tuple[tuple[int, int], Any]] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run.

        Raises:
            ValueError: if there is none, or none that can be read.
        """
        return read_config(self.folder)

    @property
    def progress(self) -> dict[str, Any] | None:
        """What `training.progress.Progress` wrote; None of runs of earlier versions."""
        progress = self._read(self.folder / "progress.json", _json) or {}
        is_whole = all(
            name in progress and isinstance(progress[name], kind) for name, kind in PROGRESS.items()
        )
        return dict(progress) if is_whole else None

    @property
    def state(self) -> State:
        """Whether the run is being trained, has been stopped, or has ended as it should."""
        progress = self.progress
        if progress is None:
            last = self.num_train_steps
            return "ended" if last is not None and self.step >= last else "stopped"
        if progress["state"] == "running" and not _lives(progress):
            return "stopped"
        return progress["state"]

    @property
    def step(self) -> int:
        """The number of training steps so far.

        Of earlier versions that of the newest checkpoint, or without one the last that was logged.
        """
        progress, checkpoints = self.progress, self.checkpoints
        if progress is not None:
            return progress["step"]
        if checkpoints:
            return checkpoints[-1].step
        return max((points[-1][0] for points in self.curves().values()), default=0)

    @property
    def num_train_steps(self) -> int | None:
        """The steps that the run is to have; None of an earlier version that was given epochs."""
        progress = self.progress
        if progress is not None:
            return progress["num_train_steps"]
        return self.config["trainer"].get("num_train_steps")

    @property
    def updated(self) -> datetime:
        """When the run was last seen to go on, in UTC.

        Raises:
            OSError: if the folder holds no run.
        """
        if (progress := self.progress) is not None:
            return datetime.fromisoformat(progress["updated"])
        files = [point.folder / "manifest.json" for point in self.checkpoints]
        times = [file.stat().st_mtime for file in files if file.exists()]
        config = self.folder / "config.json"
        return datetime.fromtimestamp(max(times, default=config.stat().st_mtime), timezone.utc)

    @property
    def checkpoints(self) -> list[CheckpointRecord]:
        """The checkpoints by their steps, damaged ones too."""
        folders = list_checkpoints(self.folder / "checkpoints")
        return [
            CheckpointRecord(
                step_of(folder),
                folder,
                self._read(folder / "manifest.json", lambda file: validation_loss(file.parent)),
            )
            for folder in folders
        ]

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss; None if none has one."""
        validated = [point for point in self.checkpoints if point.validation_loss is not None]
        best = min(validated, key=lambda point: point.validation_loss, default=None)
        return best and best.step

    @property
    def grids(self) -> dict[int, Path]:
        """The pictures of samples by the step at which they were drawn; of sequences plots."""
        found = {}
        for file in (self.folder / "samples").glob("results.*.png"):
            number = file.name.split(".")[1]
            if number.isdecimal():
                found[int(number)] = file
        return dict(sorted(found.items()))

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of what was logged in TensorBoard, by name; finite ones alone."""
        return self._events.scalars()

    @property
    def evaluations(self) -> list[tuple[str, dict[str, Any]]]:
        """The names and contents of the reports of `evaluate` and `tune`, the newest last."""
        files = [
            file
            for pattern in ("report.*.json", "tune.*.json")
            for file in (self.folder / "evaluation").glob(pattern)
        ]
        files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name))
        read = ((file.stem, self._read(file, _json)) for file in files)
        return [(name, report) for name, report in read if report]

    @property
    def distance(self) -> tuple[str, float] | None:
        """The newest report's distance of generated images to real ones, with its name there.

        The Fréchet distance, or without one the sliced Wasserstein distance.
        """
        return next(((name, value) for _, name, value in self._distances()), None)

    @property
    def distances(self) -> dict[int, float]:
        """Distances of the kind of `distance`, by the checkpoint's step; the newest of each."""
        found: dict[int, float] = {}
        measure = None
        for step, name, value in self._distances():
            measure = measure or name
            if name == measure:
                found.setdefault(step, value)
        return dict(sorted(found.items()))

    def _distances(self) -> Iterator[tuple[int, str, float]]:
        """The distances of the reports, the newest first: step, name, value."""
        for _, report in reversed(self.evaluations):
            generated = report.get("generated", {})
            measure = next((known for known in DISTANCES if known in generated), None)
            checkpoint = re.fullmatch(r"checkpoint\.(\d+)", str(report.get("checkpoint")))
            if measure is not None and checkpoint is not None:
                yield int(checkpoint[1]), measure, generated[measure]

    @property
    def generation(self) -> dict[str, Any]:
        """The generation settings that `tune` chose, or none."""
        return dict(self._read(self.folder / "generation.json", _json) or {})

    @property
    def num_parameters(self) -> int | None:
        """The number of the model's parameters, by its newest checkpoint.

        Before there is one, by the model that a fine-tuning starts with; None without either.
        """
        for folder in self._models():
            count = self._read(folder / "model.safetensors", _count_parameters)
            if count is not None:
                return count
        return None

    @property
    def arguments(self) -> dict[str, Any]:
        """The model's arguments with their defaults, by its newest checkpoint; none without one."""
        for folder in self._models():
            if arguments := self._read(folder / "config.json", _json):
                return dict(arguments)
        return {}

    def _models(self) -> list[Path]:
        """The folders of the run's model, the newest first."""
        return [*(point.folder for point in reversed(self.checkpoints)), self.folder / "initial"]

    def facts(self) -> dict[str, str]:
        """What the run is, in words: `kind`, `head`, `order` and `dims`."""
        config = self.config
        names = {name: config[name] for name in ("kind", "head", "order")}
        return names | dict(dims=_dims(config["kind"], config["model"]))

    def _read(self, file: Path, read: Callable[[Path], Result]) -> Result | None:
        """What a function gives of a file, remembered until that changes; None without the file."""
        try:
            status = file.stat()
            signature = (status.st_mtime_ns, status.st_size)
            known = self._known.get(file)
            if known is None or known[0] != signature:
                known = self._known[file] = (signature, read(file))
            return known[1]
        except OSError:
            return None


def find_runs(folder: str | Path) -> list[Path]:
    """The runs in a folder, however deep, by their paths; the folder itself if it is one.

    Hidden folders are passed over, and links to a folder are followed once.
    """
    seen: set[Path] = set()

    def search(folder: Path) -> list[Path]:
        try:
            if _is_run(folder):
                return [folder]
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError:  # of a folder that may not be read
            return []
        if (real := folder.resolve()) in seen:
            return []
        seen.add(real)
        inner = [name for name in names if os.path.isdir(os.path.join(folder, name))]
        return [run for name in inner for run in search(folder / name)]

    return search(Path(folder))


def _is_run(folder: Path) -> bool:
    # the folder of a model has a configuration, too
    return (folder / "config.json").is_file() and any((folder / name).exists() for name in PARTS)


def _json(file: Path) -> dict[str, Any] | None:
    """The keys and values of a file, None if it holds anything else."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _lives(progress: dict[str, Any]) -> bool:
    """Whether the process of a training is there, as far as can be told from here."""
    import psutil

    if progress["host"] != socket.gethostname():
        return datetime.now(timezone.utc) - datetime.fromisoformat(progress["updated"]) < SILENCE
    try:
        process = psutil.Process(progress["pid"])
        started = datetime.fromisoformat(progress["started"]).timestamp()
        # a later one may have got the same number
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it is there, and another user's
        return True


def _count_parameters(weights: Path) -> int | None:
    """The number of parameters in a file of safetensors, by its header; None if it is damaged."""
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, AttributeError, TypeError, KeyError):
        return None
    return sum(math.prod(shape) for name, shape in shapes.items() if not BUFFERS.fullmatch(name))


def _dims(kind: str, model: dict[str, Any]) -> str:
    """The sizes of what a model draws."""
    if kind == "sequences":
        return f"{model['max_seq_len']} × {model['dim_input']}"
    size = model["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return f"{height} × {width} × {model['channels']}"
