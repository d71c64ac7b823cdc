"""What is wrong with a file that cannot be read as an image, in words about the file."""

from __future__ import annotations

import errno
import re
from pathlib import Path

EMPTY, FOREIGN, DAMAGED = "empty", "no image", "damaged"
UNREADABLE, TOO_LARGE, OUT_OF_RANGE = "cannot be opened", "too large", "out of range"

# how files begin
IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP")
FOREIGN_FILES = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the image: run `git lfs pull`",
    b"\0\x05\x16\x07": "holds metadata of macOS, not an image",
    b"%PDF": "is a PDF document, not an image",
    b"%!PS": "is a PostScript document, not an image",
    b"PK\3\4": "is a zip archive, not an image",
    b"\x1f\x8b": "is a gzip archive, not an image",
    b"Rar!": "is a rar archive, not an image",
    b"7z\xbc\xaf": "is a 7z archive, not an image",
    b"\xff\x0a": "is a JPEG XL image, which Pillow does not read",
    b"\0\0\0\x0cJXL": "is a JPEG XL image, which Pillow does not read",
}
HEIF = "is a HEIC image: `pip install pillow-heif` lets Pillow read it"
CONTAINERS = dict(avif="is an AVIF image: Pillow 11.3 and later read it", heic=HEIF, heix=HEIF)
CONTAINERS |= dict(mif1=HEIF, hevc=HEIF)
MARKUP = re.compile(rb"(?is)(<\?xml.*?)?(<!--.*?-->\s*)*<(!doctype )?(\w+)")
CONTROLS = set(range(32)) - set(b"\t\n\f\r\x1b")  # no bytes of a text
CUT_OFF = re.compile(r"(?i)truncated|not enough|\bEOF\b|expected to read")


class ValueRangeError(ValueError):
    """Values of a picture that cannot be brought to 8 bits."""


class DamagedImageError(ValueError):
    """A file with the ending of an image that cannot be read as one; `kind` says what it is."""

    # with one argument alone, an error of a worker of a DataLoader can be raised anew
    def __init__(self, message: str, kind: str = DAMAGED):
        super().__init__(message)
        self.kind = kind


def fault_of_opening(path: Path, error: OSError) -> DamagedImageError:
    reason = {errno.EACCES: "permission denied", errno.ENOENT: "no such file"}.get(error.errno)
    reason = reason or (error.strerror or type(error).__name__).lower()
    return DamagedImageError(f"{path} cannot be opened: {reason}", UNREADABLE)


def fault_of_size(path: Path, max_pixels: int) -> DamagedImageError:
    how = "scale it down, or raise max_pixels"
    message = f"{path} has more pixels than the limit of {max_pixels:,}: {how}"
    return DamagedImageError(message, TOO_LARGE)


def fault_of_content(path: Path, data: bytes, error: Exception | None) -> DamagedImageError:
    """Of a file that Pillow does not know (no `error`), or whose decoder raised it."""
    if isinstance(error, ValueRangeError):
        return DamagedImageError(f"{path} holds {error}", OUT_OF_RANGE)
    if not data.strip(b"\0"):
        return DamagedImageError(f"{path} is damaged: it holds zeros alone")
    if error is None and (what := _foreign(data)):
        return DamagedImageError(f"{path} {what}", FOREIGN)
    if _is_cut_off(data, error):
        return DamagedImageError(f"{path} is cut off")
    reason = "its header cannot be read" if error is None else _one_line(error)
    return DamagedImageError(f"{path} is damaged: {reason}")


def _foreign(data: bytes) -> str | None:
    for start, what in FOREIGN_FILES.items():
        if data.startswith(start):
            return what
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("latin-1")
        return CONTAINERS.get(brand, "is a film, or of another kind that Pillow does not read")
    if data.startswith(IMAGES):
        return None
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if markup := MARKUP.match(start):
        name = markup[4].lower()
        if name == b"svg":
            return "is an SVG drawing, which Pillow does not read"
        kind = "HTML page" if name in (b"html", b"head", b"body") else "XML file"
        return f"is an {kind}, not an image"
    if not CONTROLS.intersection(data[:1024]):
        return "is a text file, not an image"
    return "is not an image of a format that Pillow reads"


def _is_cut_off(data: bytes, error: Exception | None) -> bool:
    if data.startswith(b"RIFF"):  # says its length
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith((b"II*\0", b"MM\0*")):  # says where its directory is
        order = "little" if data.startswith(b"II") else "big"
        if len(data) < 10 or len(data) <= int.from_bytes(data[4:8], order):
            return True
    return bool(error is not None and CUT_OFF.search(str(error)))


def _one_line(error: Exception) -> str:
    # the last line of a message is all that the command line shows of a worker's error
    return " ".join(str(error).split()) or type(error).__name__
