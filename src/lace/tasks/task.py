"""What the project asks of a task: puzzles in disjoint parts, exact answers, and an exact reading of written steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from random import Random
from typing import Any, Literal, Protocol, cast

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class TraceReport:
    """What an exact reading of one thread's text found."""

    steps: int
    """Equations written."""
    false_steps: int
    """Equations whose arithmetic is wrong."""
    illegal_steps: int
    """Equations with a right value but an operand that is not at hand (never given, or used before)."""
    attempts: tuple[tuple[str, ...], ...] = ()
    """The names of the ideas tried, in order, where the task has such: of those given up before their last name, and of
    those that have all their names, even if broken off later. Checking what another thread has found is no attempt."""


class Puzzle(Protocol):
    """A question with answers that a program can check."""

    @property
    def prompt(self) -> str:
        """The question as the shipped models know it."""

    def check(self, answer: str | None) -> bool:
        """Whether an answer is right; never raises."""


class Task(Protocol):
    """A module of this package that makes puzzles and reads traces."""

    def generate(self, rng: Random, split: Split) -> Puzzle:
        """Draws a puzzle of one part of the data."""

    def puzzles(self, n: int, seed: int, split: Split) -> list[Puzzle]:
        """`n` different puzzles. Raises ValueError if the part does not hold that many."""

    def read_trace(self, puzzle: Any, text: str) -> TraceReport:
        """Checks every written step of a thread."""

    def parse(self, text: str) -> Puzzle:
        """Reads a question as people write it. Raises ValueError if it is none of this task."""

    def check_range(self, puzzle: Any) -> None:
        """Raises ValueError, one line, for a puzzle that is larger than those that `generate` draws."""


TASKS = {"countdown": "lace.tasks.countdown", "chain-sum": "lace.tasks.chain_sum"}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known are {', '.join(TASKS)}")
    return cast(Task, import_module(TASKS[name]))


def find_task(text: str) -> tuple[str, Puzzle]:
    """The task that a question belongs to, and its puzzle.

    Raises:
        ValueError: if it belongs to none; says how questions are written.
    """
    reasons = []
    for name in TASKS:
        try:
            return name, get_task(name).parse(text)
        except ValueError as error:
            reasons.append(str(error))
    examples = " or ".join(reason.partition("for example ")[2] for reason in reasons)
    raise ValueError(f"no task knows the question {text.strip()[:80]!r}; write for example {examples}")


def different(draw: Callable[[], tuple[Any, Any]], n: int, of: str) -> list[Any]:
    """Draws (key, puzzle) pairs until there are `n` puzzles of different keys.

    Raises:
        ValueError: if hardly any new ones turn up; `of` says where.
    """
    misses = 0
    found: dict[Any, Any] = {}
    while len(found) < n:
        key, puzzle = draw()
        misses = misses + 1 if key in found else 0
        if misses > 2000:
            raise ValueError(f"{of} has only about {len(found)} puzzles, not {n}")
        found.setdefault(key, puzzle)
    return list(found.values())
