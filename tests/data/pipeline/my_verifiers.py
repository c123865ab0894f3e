"""A user's functions, some of which misbehave."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from lace.tasks.task import find_task


def even(question: dict[str, Any], answer: str) -> bool:
    """Right if even."""
    return int(answer) % 2 == 0


def hangs(question: dict[str, Any], answer: str) -> bool:
    """Never comes back from some answers."""
    while answer == "hang":
        time.sleep(0.01)
    return True


def dies(question: dict[str, Any], answer: str) -> bool:
    """Takes its process along."""
    os._exit(3)


def exits(question: dict[str, Any], answer: str) -> bool:
    """Wants to end the program."""
    sys.exit(3)


class Unreadable(Exception):
    """Does not survive the way to another process."""

    def __init__(self, text: str, place: int) -> None:
        super().__init__(text)
        self.place = place


def raises_unreadable(question: dict[str, Any], answer: str) -> bool:
    """Fails, and at length."""
    raise Unreadable("x" * 10_000, 3)


def solves_puzzle(question: dict[str, Any], answer: str) -> bool:
    """Right if it solves a puzzle of the embedded models."""
    return find_task(question["text"])[1].check(answer)
