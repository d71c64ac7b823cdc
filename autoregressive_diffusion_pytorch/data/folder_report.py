"""Everything odd in a folder of images, found before a training meets it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from PIL import Image
from tqdm import tqdm

from ..utils.text import counted, printable
from .folder_listing import LOCKED, Listing, list_folder
from .image_faults import DamagedImageError
from .image_files import MAX_PIXELS, decoded, fit_pixels, read_file
from .image_folder import check_any

# what is odd about an image that can be read
TINY = 32  # height or width in pixels
ELONGATED = 3  # times as long as wide
USUAL_MODES = ("L", "RGB", "RGBA")
SAME_FORMAT = dict(MPO="JPEG", DIB="BMP")  # that cameras and programs give the other's ending
SHOWN = 5  # names of each kind


@dataclass
class FileFacts:
    """What one file holds, or the fault for which it cannot be read."""

    digest: bytes | None = None
    fault: DamagedImageError | None = None
    format: str | None = None
    mode: str | None = None
    size: tuple[int, int] = (0, 0)
    frames: int = 1
    remark: str | None = None  # of a strict decoder


def file_facts(path: Path, max_pixels: int = MAX_PIXELS) -> FileFacts:
    """Reads a file as a training does, and more strictly."""
    facts = FileFacts()
    try:
        data = read_file(path)
        facts.digest = hashlib.blake2b(data, digest_size=16).digest()
        with decoded(path, data, max_pixels) as image:
            facts.format, facts.mode, facts.size = image.format, image.mode, image.size
            fit_pixels(image, (TINY, TINY), 3)
            with suppress(Exception):  # of later frames: they are not read
                facts.frames = getattr(image, "n_frames", 1)
        if facts.format in ("JPEG", "MPO"):
            facts.remark = remark_on_jpeg(data)
    except DamagedImageError as error:
        facts.fault = error
    return facts


def remark_on_jpeg(data: bytes) -> str | None:
    """What libjpeg warns of, None for nothing or without simplejpeg.

    Stray bytes do no harm, but changed ones may have made noise of the picture: JPEG has no
    checksum, yet most changes are no valid code any more.
    """
    if not has_strict_decoder():
        return None
    import simplejpeg

    try:
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
        colorspace = dict(CMYK="CMYK", YCCK="CMYK", RGB="RGB").get(colorspace, "GRAY")
        fastest = dict(min_height=1, min_width=1, min_factor=8)  # at an eighth of the size
        simplejpeg.decode_jpeg(data, colorspace, **fastest, strict=True)
    except ValueError as error:
        return str(error)


def has_strict_decoder() -> bool:
    return find_spec("simplejpeg") is not None


class FolderReport:
    """What is in a folder of images.

    Attributes:
        listing: its images and what is left out.
        facts: of each image by its path.
        faults: errors of the files that cannot be read.
        remarks: by what is odd, the files that can be read all the same.
        classes: images that can be read, by class; None without labels.
    """

    def __init__(self, listing: Listing, facts: dict[Path, FileFacts], labels: bool):
        self.listing = listing
        self.facts = facts
        self.faults = [f.fault for f in facts.values() if f.fault is not None]
        self.readable = {path: f for path, f in facts.items() if f.fault is None}
        self.remarks = self._remarks()
        self.classes = None
        if labels:
            found = Counter(map(listing.class_of, self.readable))
            self.classes = {name: found[name] for name in listing.classes}

    def _remarks(self) -> dict[str, list[str]]:
        remarks: dict[str, list[str]] = {}

        def note(kind: str, path: Path, detail: str) -> None:
            remarks.setdefault(kind, []).append(f"{self._name(path)}{detail and ': '}{detail}")

        first: dict[bytes, Path] = {}
        for path, facts in self.readable.items():
            width, height = facts.size
            if facts.remark is not None:
                note("suspicious (their decoder warns)", path, facts.remark)
            if (other := first.setdefault(facts.digest, path)) is not path:
                note("duplicates (the same bytes)", path, f"as {self._name(other)}")
            if min(width, height) < TINY:
                note(f"below {TINY} pixels in height or width", path, f"{width} x {height}")
            if max(width, height) > ELONGATED * min(width, height):
                note(f"more than {ELONGATED} times as long as wide", path, f"{width} x {height}")
            if facts.mode not in USUAL_MODES:
                note("of other modes, to be converted", path, facts.mode)
            if facts.frames > 1:
                note("of several frames, the first is read", path, str(facts.frames))
            if SAME_FORMAT.get(facts.format, facts.format) != _format_of_name(path):
                note("of another format than their ending", path, facts.format)
        return remarks

    def _name(self, path: Path) -> str:
        return printable(str(path.relative_to(self.listing.folder)))

    @property
    def is_sound(self) -> bool:
        """Whether a training can read every image."""
        return not self.faults and LOCKED not in self.listing.left_out

    def lines(self) -> list[str]:
        """The report for people."""
        total = counted(len(self.facts), "image file", "image files")
        lines = [f"{printable(str(self.listing.folder))}: {total}"]
        lines.append(f"can be read: {len(self.readable):,}")
        lines += self._overview()
        kinds: dict[str, list[str]] = {}
        for fault in self.faults:
            kinds.setdefault(f"cannot be read, {fault.kind}", []).append(printable(str(fault)))
        for kind, names in (kinds | self.remarks).items():
            lines.append(f"{kind}: {len(names):,}")
            lines += [f"  {name}" for name in names[:SHOWN]]
            lines += ["  …"] if len(names) > SHOWN else []
        for line in self.listing.summary():
            lines.append(f"left out: {line}")
        if self.listing.num_links:
            lines.append(f"reached by links: {self.listing.num_links:,}")
        if self.listing.num_others:
            lines.append(f"files that are no images: {self.listing.num_others:,}")
        return lines

    def _overview(self) -> list[str]:
        lines = []
        if self.readable:
            sides = sorted(min(facts.size) for facts in self.readable.values())
            span = f"{sides[0]} to {sides[-1]} pixels, median {median(sides):g}"
            lines.append(f"  shorter side: {span}")
            for name in ("format", "mode"):
                found = Counter(getattr(facts, name) for facts in self.readable.values())
                lines.append(f"  {name}s: {_counts(found)}")
        if self.classes is not None:
            lines.append(f"  classes: {_counts({n: c for n, c in self.classes.items() if c})}")
            if empty := [printable(name) for name, count in self.classes.items() if not count]:
                lines.append(f"  no classes, without images: {', '.join(empty)}")
        return lines


def _format_of_name(path: Path) -> str | None:
    format = Image.registered_extensions().get(path.suffix.lower())
    return SAME_FORMAT.get(format, format)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)} {count:,}" for name, count in found.items())


def report_on(
    folder: str | Path,
    *,
    labels: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> FolderReport:
    """Reads every image of a folder, several at a time. Errors as of `ImageDataset`."""
    listing = list_folder(folder, by_class=labels)
    check_any(listing)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = pool.map(partial(file_facts, max_pixels=max_pixels), listing.images)
        bar = tqdm(facts, total=len(listing.images), disable=not progress, leave=False)
        return FolderReport(listing, dict(zip(listing.images, bar, strict=True)), labels)
