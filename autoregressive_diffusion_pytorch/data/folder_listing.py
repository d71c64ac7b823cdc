"""Finding the images below a folder, and what is left out on the way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.text import counted, printable
from .image_formats import OTHER_PICTURES, PICTURES, readable_endings, suffixes

# folders and files of file managers, archives, notebooks and disks, beside all that begin with "."
LEFTOVERS = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "thumbs.db"),
    *("system volume information", "lost+found", "desktop.ini", "__pycache__"),
}
# why something is left out, in the singular and the plural
HIDDEN = ("hidden file or folder", "hidden files and folders")
BROKEN = ("link that leads nowhere", "links that lead nowhere")
REPEATED = ("link to a folder that is read already", "links to folders that are read already")
LOCKED = ("folder that cannot be opened", "folders that cannot be opened")
OTHER = ("image of another format", "images of other formats")
SPECIAL = ("device, pipe or socket", "devices, pipes and sockets")
LOOSE = ("image in no class's folder", "images in no class's folder")


@dataclass
class Listing:
    """The images below a folder, sorted, and all else.

    Attributes:
        classes: names of the folders in the folder that were searched, with images or without.
        left_out: paths by the reason for which they are left out.
        num_links: images that links led to.
        num_others: files that are no images.
    """

    folder: Path
    images: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    left_out: dict[tuple[str, str], list[Path]] = field(default_factory=dict)
    num_links: int = 0
    num_others: int = 0

    def leave_out(self, reason: tuple[str, str], paths: Iterable[str | Path]) -> None:
        self.left_out.setdefault(reason, []).extend(map(Path, paths))

    def class_of(self, path: Path) -> str:
        return path.relative_to(self.folder).parts[0]

    def summary(self) -> list[str]:
        """What is left out and why, a line for each reason."""
        lines = []
        for reason, paths in self.left_out.items():
            what = counted(len(paths), *reason)
            if reason is OTHER:
                what += f" ({', '.join(sorted({path.suffix.lower() for path in paths}))})"
            example = printable(str(min(paths).relative_to(self.folder)))
            lines.append(f"{what}, such as {example}")
        return lines


def list_folder(
    folder: str | Path,
    exts: Sequence[str] | None = None,
    by_class: bool = False,
    only_first: bool = False,
) -> Listing:
    """Finds the images below a folder by the endings of their names; links are followed.

    A folder is searched once, whatever leads to it.

    Args:
        exts: endings of the files to find, in any case; by default of all that are read here.
        by_class: each folder in it holds a class: what two of them lead to is searched for both,
            and images beside them are left out.
        only_first: search no further than the first folder that holds any: enough to know whether
            there are some.

    Raises:
        OSError: if the folder is missing, is a file, or cannot be opened.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"folder {folder} is a file; expected a folder of images")
    search = _Search(Listing(folder), exts, only_first)
    try:
        folders = search.scan(str(folder), is_linked=False)
    except PermissionError as error:
        raise PermissionError(f"folder {folder} cannot be opened: permission denied") from error
    listing, seen = search.listing, {_identity(folder)}
    if by_class and listing.images:
        listing.leave_out(LOOSE, listing.images)
        listing.images, listing.num_links = [], 0
    for group in ([folder] for folder in folders) if by_class else [folders]:
        search.walk(group, set(seen))
    listing.images.sort()
    searched = {Path(path) for path, _ in folders} - set(listing.left_out.get(REPEATED, []))
    listing.classes = sorted(path.name for path in searched)
    return listing


class _Search:
    def __init__(self, listing: Listing, exts: Sequence[str] | None, only_first: bool):
        self.listing = listing
        self.only_first = only_first
        self.suffixes = suffixes(readable_endings() if exts is None else exts)
        # whoever names endings does not want others
        self.others = suffixes((*PICTURES, *OTHER_PICTURES)) if exts is None else ()

    def walk(self, folders: list[tuple[str, bool]], seen: set[tuple[int, int]]) -> None:
        """Searches folders, links to folders last: one that leads back to others is left out."""
        real, links = deque(), deque()
        while True:
            for path, is_linked in folders:
                (links if is_linked else real).append((path, is_linked))
            folders = []
            if not (queue := real or links) or (self.only_first and self.listing.images):
                return
            path, is_linked = queue.popleft()
            try:
                if (identity := _identity(path)) in seen:
                    self.listing.leave_out(REPEATED, [path])
                else:
                    seen.add(identity)
                    folders = self.scan(path, is_linked)
            except OSError:
                self.listing.leave_out(LOCKED, [path])

    def scan(self, folder: str, is_linked: bool) -> list[tuple[str, bool]]:
        """Notes the files of a folder; its folders, each with whether a link has led to it."""
        listing, folders = self.listing, []
        with os.scandir(folder) as entries:
            for entry in entries:
                name, linked = entry.name.lower(), is_linked or entry.is_symlink()
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:  # a link to itself
                    is_folder = is_file = False
                if name.startswith(".") or name in LEFTOVERS:
                    if is_folder or name.endswith(self.suffixes):
                        listing.leave_out(HIDDEN, [entry.path])
                elif is_folder:
                    folders.append((entry.path, linked))
                elif not is_file:
                    listing.leave_out(BROKEN if entry.is_symlink() else SPECIAL, [entry.path])
                elif name.endswith(self.suffixes):
                    listing.images.append(Path(entry.path))
                    listing.num_links += linked
                elif name.endswith(self.others):
                    listing.leave_out(OTHER, [entry.path])
                else:
                    listing.num_others += 1
        return folders


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
