"""Fonts that have the letters of a text, and letters that stand in for those that none has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# where fonts are, beside what fontconfig finds
FONT_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
STYLES = re.compile(r"(?i)bold|italic|oblique|mono|serif|condensed|light|thin|black")
ABSENT = "\U0010ffff"  # never a letter: fonts show it as they show what they lack
# in the Unicode name of a letter
SOUND = r"(?:LETTER|SYLLABLE|VOWEL SIGN|CHARACTER) (?:(?:FINAL|SHORT|SMALL|SARA) )*(\w+)(?: SIGN)?"
# scripts whose letters have names that begin with their sound: alpha, ka, alef
BY_FIRST_SOUND = ("GREEK", "CYRILLIC", "HEBREW", "ARABIC", "ARMENIAN", "COPTIC")


def readable(text: str, size: int) -> tuple[str, Font]:
    """A font for a text, and the text, with other letters for those that no font has."""
    text = "".join(letter for letter in text if not _is_invisible(letter))
    best, fewest = None, None
    for font in _fonts(size, text):
        missing = {letter for letter in text if not _has(font, letter)}
        if best is None or len(missing) < len(fewest):
            best, fewest = font, missing
        if not missing:
            break
    stand_ins = (_stand_in(c) if c in fewest else c for c in text)
    return "".join(stand_ins), best


def _fonts(size: int, text: str) -> Iterator[Font]:
    """Pillow's own font, that of matplotlib, and those of the system that may have the text."""
    yield ImageFont.load_default(size=size)
    for path in _files(text):
        if (font := _load(path, size)) is not None:
            yield font


def _files(text: str) -> Iterator[str]:
    if (matplotlib := find_spec("matplotlib")) is not None:
        yield str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    yield from _system_fonts("".join(sorted(set(text))))


@cache
def _system_fonts(letters: str) -> list[str]:
    """Files of fonts, regular ones first: those that have all letters, as fontconfig says."""
    if shutil.which("fc-list"):
        codes = " ".join(f"{ord(letter):x}" for letter in letters)
        command = ["fc-list", f":charset={codes}", "file"]
        found = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape")
        files = [line.rstrip(": ") for line in found.stdout.splitlines()]
    else:
        folders = map(os.path.expanduser, FONT_FOLDERS)
        files = [str(f) for d in folders for f in Path(d).rglob("*") if f.is_file()]
    files = [file for file in files if file.lower().endswith((".ttf", ".otf", ".ttc"))]
    return sorted(files, key=lambda file: (len(STYLES.findall(Path(file).name)), file))


@cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:  # one that Pillow cannot read, or of other sizes alone
        return None


def _has(font: Font, letter: str) -> bool:
    return letter.isspace() or _picture(font, letter) != _picture(font, ABSENT)


def _picture(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    if isinstance(font, ImageFont.FreeTypeFont):  # as it is in the font, not as it would be joined
        font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    try:
        mask = font.getmask(letter)
    except UnicodeError:  # Pillow's font without FreeType knows Latin alone
        return (0, 0), b""
    return mask.size, bytes(mask)


def _is_invisible(letter: str) -> bool:
    return unicodedata.category(letter) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(
        letter, ""
    )


def _stand_in(letter: str) -> str:
    """ASCII for a letter: without its accents, by its name's sound, or its number."""
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    if plain:
        return plain
    name = unicodedata.name(letter, "")
    sound = re.search(SOUND, name)
    if unicodedata.category(letter) in ("Mn", "Mc", "Me") and "VOWEL SIGN" not in name:
        return ""
    if sound is None:
        known = name and not name.startswith("CJK")
        return f"({name.lower()})" if known else f"U+{ord(letter):04X}"
    if sound[0].endswith("SIGN"):
        return ""
    word = sound[1].lower()
    if name.startswith(BY_FIRST_SOUND):
        if len(word) == 2 and word[0] == "e":  # el, em, en
            word = word[1]
        elif len(word) > 2 or word[0] not in "aeiouy":
            word = re.match(r"[b-df-hj-np-tv-xz]+|.", word)[0]
    return word.capitalize() if "CAPITAL" in name else word
