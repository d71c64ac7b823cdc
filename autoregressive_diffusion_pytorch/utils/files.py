"""Files that are written whole or not at all, and places that are tried before the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` make a file, and moves it to `path`, which never holds a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    os.replace(partial, path)
    return path


def atomic_write_text(path: str | Path, text: str) -> Path:
    return atomic_write(path, lambda partial: partial.write_text(text))


_links: list[TemporaryDirectory] = []  # until the process ends


def utf8_path(folder: str | Path) -> Path:
    """A folder, by a link to it if its path is not UTF-8, which TensorBoard cannot write to."""
    folder = Path(folder)
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        folder.mkdir(parents=True, exist_ok=True)
        _links.append(TemporaryDirectory())
        link = Path(_links[-1].name) / "folder"
        link.symlink_to(folder.resolve())
        return link
    return folder


def check_folder(name: str, folder: str | Path) -> None:
    """Makes a folder if there is none, and tries to write into it.

    Args:
        name: of the argument that names the folder.

    Raises:
        OSError: if nothing can be written there.
    """
    folder = Path(folder)
    try:
        for path in (folder, *folder.parents):
            if path.is_file():
                raise NotADirectoryError(f"{path} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(f"{name} {folder} cannot be written: {error.strerror or error}") from error


def check_file(name: str, file: str | Path) -> None:
    """As `check_folder`, for a file to be written whole."""
    if Path(file).is_dir():
        raise IsADirectoryError(f"{name} {file} cannot be written: it is a folder")
    try:
        check_folder(name, Path(file).parent)
    except OSError as error:
        reason = error.__cause__.strerror or error.__cause__
        raise OSError(f"{name} {file} cannot be written: {reason}") from error
