"""Checkpoints: folders that are written whole or not at all.

`checkpoint.STEP` is written beside its place, synced to disk with a manifest of the sizes and
hashes of its files, and moved there. So whatever ends the process or the machine, what has the name
of a checkpoint is one; a file that is damaged later is found out (`utils.manifests`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..utils.manifests import (
    MANIFEST,
    list_checkpoints,
    read_manifest,
    sha256,
    step_of,
    validation_loss,
)


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


def _entry(path: Path) -> dict[str, int | str]:
    return dict(bytes=path.stat().st_size, sha256=sha256(path))


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    if path.is_dir() and os.name == "nt":  # Windows syncs no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
