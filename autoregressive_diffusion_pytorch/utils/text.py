"""Texts for people."""

from __future__ import annotations

import unicodedata


def counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def printable(name: str) -> str:
    """The name of a file as a text that can be written anywhere, in one line.

    Control characters, and bytes that are not UTF-8 (which Python keeps as surrogates), become
    escapes.
    """

    def escaped(character: str) -> str:
        code = ord(character)
        if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"):
            return character
        is_byte = code < 0x100 or 0xDC80 <= code <= 0xDCFF
        return f"\\x{code & 0xFF:02x}" if is_byte else f"\\u{code:04x}"

    return "".join(map(escaped, name))
