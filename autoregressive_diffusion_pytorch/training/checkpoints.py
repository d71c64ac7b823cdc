"""Checkpoints: folders that are written whole or not at all, and checked before they are read.

`checkpoint.STEP` is written beside its place, synced to disk with a manifest of the sizes and
hashes of its files, and moved there. So whatever ends the process or the machine, what has the name
of a checkpoint is one; a file that is damaged later is found out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

NAME = re.compile(r"checkpoint\.(\d+)")
MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not as it was written."""


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None], **facts) -> Path:
    """Writes `checkpoint.STEP` into `folder`; what it replaces stays until it is in place.

    Args:
        write: writes the files into the folder that it is given.
        facts: further JSON values for the manifest.

    Raises:
        OSError: if it cannot be written, on a full disk for instance.
    """
    target = folder / f"checkpoint.{step}"
    partial = target.with_name(f"{target.name}.partial")
    try:
        finish_interrupted(folder)
        partial.mkdir(parents=True)
        write(partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        entries = {path.relative_to(partial).as_posix(): _entry(path) for path in files}
        manifest = partial / MANIFEST
        manifest.write_text(json.dumps(dict(step=step, **facts, files=entries), indent=2))
        for path in (*files, manifest, partial):
            _sync(path)
        if target.exists():
            os.replace(target, target.with_name(f"{target.name}.replaced"))
        os.replace(partial, target)
        _sync(folder)
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise OSError(
            f"{target} could not be written, what was saved before is untouched: {cause}"
        ) from error
    finally:
        finish_interrupted(folder)
    return target


def add_facts(checkpoint: Path, **facts) -> None:
    """Adds values to the manifest of a checkpoint, or changes them there.

    Raises:
        OSError: if they cannot be written; the manifest is as before.
        DamagedCheckpointError: if there is no manifest to add them to.
    """
    path = checkpoint / MANIFEST
    partial = path.with_name(f"{MANIFEST}.partial")
    partial.write_text(json.dumps(read_manifest(checkpoint) | facts, indent=2))
    _sync(partial)
    os.replace(partial, path)
    _sync(checkpoint)


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error, such as "No space left on device", behind one of a library."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def finish_interrupted(folder: Path) -> None:
    """Removes what an interrupted write left, and restores what it was about to replace."""
    for replaced in folder.glob("checkpoint.*.replaced"):
        target = replaced.with_suffix("")
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(replaced, target)
    for partial in folder.glob("checkpoint.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def remove_old_checkpoints(folder: Path, keep_last: int, up_to: int) -> None:
    """Removes all but the last `keep_last` checkpoints up to a step, and the best one."""
    paths = [path for path in list_checkpoints(folder) if step_of(path) <= up_to]
    losses = {path: loss for path in paths if (loss := validation_loss(path)) is not None}
    best = min(losses, key=losses.get) if losses else None
    for path in paths[:-keep_last]:
        if path != best:
            partial = path.with_name(f"{path.name}.partial")  # half removed, it would look damaged
            os.replace(path, partial)
            shutil.rmtree(partial, ignore_errors=True)


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


def _first_whole(paths) -> Path | None:
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
        if _sha256(path) != expected["sha256"]:
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
    return loss if loss is not None and math.isfinite(loss) else None


def _entry(path: Path) -> dict[str, int | str]:
    return dict(bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    if path.is_dir() and os.name == "nt":  # Windows syncs no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
