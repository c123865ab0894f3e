"""Texts of others: what must not get into files or to a terminal, and how what has several lines is written in one."""

from __future__ import annotations

import re
import unicodedata

TAG = re.compile(r"\[\[(?:best|success|fail)\]\]")
"""What ends a thread's answer."""
LINE_BREAK = r"\n"
"""Backslash and n, with a space on either side: a line break in a step or an answer, which are one line of a thread."""
_BREAK = re.compile(r" ?(?<!\\)\\n(?![A-Za-z]) ?")
"""And not the beginning of LaTeX's commands."""
_JOINERS = "\u200c\u200d"
"""What Persian, the scripts of India and emoji of several parts are not written right without."""
_NESTED = re.compile(r"\[(?=\[)")
_APART = re.compile(r"\[ (?=\[)")


def well_formed(text: str) -> str:
    """The text with `?` for each half of a surrogate pair, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode()


def printable(text: str) -> str:
    """The text without characters that steer a terminal or cannot be seen (category C), but for line ends, tabs and
    joiners. Characters that Python's tables do not know yet stay: next year's emoji are among them."""
    kept = "\n\t" + _JOINERS
    return "".join(char for char in text if char in kept or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co"))


def tidy(text: str) -> str:
    """The text without blank lines around it and spaces at the ends of its lines. In a text of one line runs of spaces
    are one space; in one of several they may align something, and stay."""
    lines = [line.rstrip() for line in text.split("\n")]
    text = "\n".join(lines).strip("\n")
    return text if "\n" in text else " ".join(text.split())


def one_line(text: str) -> str:
    """The text with its line breaks spelled."""
    return f" {LINE_BREAK} ".join(text.split("\n"))


def spell_answer(answer: str) -> str:
    """An answer as it stands behind `answer:`, in one line, and with a space between brackets that would end it: `[[`
    begins a tag."""
    return _NESTED.sub("[ ", one_line(answer))


def read_spelled(text: str) -> str:
    """The answer that is so spelled."""
    return _APART.sub("[", _BREAK.sub("\n", text))
