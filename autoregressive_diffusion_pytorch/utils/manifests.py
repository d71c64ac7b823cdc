"""Checkpoints as they are read: each has a manifest of its files, and one is the best."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

NAME = re.compile(r"checkpoint\.(\d+)")
MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not as it was written."""


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder by their steps, damaged ones too."""
    folder = Path(folder)
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(NAME.fullmatch(checkpoint.name)[1])


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The whole checkpoint with the most steps, or None; warns of each damaged one."""
    return _first_whole(reversed(list_checkpoints(folder)))


def best_checkpoint(folder: str | Path) -> Path | None:
    """The whole checkpoint with the lowest validation loss; of those without one the newest."""

    def rank(path: Path) -> tuple[float, int]:
        loss = validation_loss(path)
        return float("inf") if loss is None else loss, -step_of(path)

    return _first_whole(sorted(list_checkpoints(folder), key=rank))


def _first_whole(paths: Iterable[Path]) -> Path | None:
    for path in paths:
        try:
            check_checkpoint(path)
            return path
        except DamagedCheckpointError as error:
            warnings.warn(f"a damaged checkpoint is passed over: {error}", stacklevel=3)
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Compares the files with the manifest.

    Raises:
        DamagedCheckpointError: if one is missing or differs; it names it.
    """
    for name, expected in read_manifest(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedCheckpointError(
                f"{path} holds {size} bytes instead of {expected['bytes']}"
            )
        if sha256(path) != expected["sha256"]:
            fault = "its hash differs from the manifest's"
            raise DamagedCheckpointError(f"{path} is not what was written: {fault}")


def read_manifest(checkpoint: Path) -> dict:
    """The manifest: `step`, `validation_loss`, and the `bytes` and `sha256` of the `files`.

    Raises:
        DamagedCheckpointError: if it is missing or cannot be read.
    """
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        for entry in manifest["files"].values():
            if not {"bytes", "sha256"} <= entry.keys():
                raise KeyError("sha256")
        return manifest
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error!r}") from error


def validation_loss(checkpoint: Path) -> float | None:
    """The validation loss of a checkpoint; None if it has none, or none that is finite."""
    try:
        loss = read_manifest(checkpoint).get("validation_loss")
    except DamagedCheckpointError:
        return None
    return loss if isinstance(loss, (int, float)) and math.isfinite(loss) else None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
