"""Texts of others: what must not get into files or to a terminal."""

from __future__ import annotations

import unicodedata


def well_formed(text: str) -> str:
    """The text with `?` for each half of a surrogate pair, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode()


def printable(text: str) -> str:
    """The text without characters that steer a terminal or cannot be seen (category C), but for line ends and tabs."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char)[0] != "C")
