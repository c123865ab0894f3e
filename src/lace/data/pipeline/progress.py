"""Progress of a stage on standard error: a line that is redrawn, or, if nobody watches, one from time to time."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

EVERY = 10.0
"""Seconds between lines where nobody watches."""


class StageProgress:
    """A context manager that tells how far a stage is.

    Args:
        stage: what is told first.
        total: items to decide.
        done: of them, decided by earlier runs.
    """

    def __init__(self, stage: str, total: int, done: int = 0, console: Console | None = None) -> None:
        self.stage, self.total, self.before, self.done = stage, total, done, done
        self.rejected = self.calls = self.tokens = 0
        self.money = self.waits_until = 0.0
        self.console = console or Console(stderr=True)
        self.drawn = self.console.is_terminal
        columns = (TextColumn(f"{stage:10}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.drawn)
        self.task = self.bar.add_task(stage, total=total, completed=done, told="")
        self.started = self.told = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.update(self.task, completed=self.done, told=self.line())
        self.bar.__exit__(kind, error, trace)
        if not self.drawn:
            self._print()

    def decided(self, *, kept: bool) -> None:
        """Says that one more item is decided."""
        self.done += 1
        self.rejected += not kept
        self._tell()

    def called(self, calls: int, tokens: int, money: float) -> None:
        """Says what this run's calls of the stage are so far."""
        self.calls, self.tokens, self.money = calls, tokens, money
        self._tell()

    def waiting(self, seconds: float) -> None:
        """Says that the server lets no call in for so long."""
        self.waits_until = time.monotonic() + seconds
        self._tell()

    def line(self) -> str:
        """Whether it waits, throughput, cost, and time left."""
        seconds = max(1e-9, time.monotonic() - self.started)
        parts = [f"{self.rejected} rejected"] if self.rejected else []
        if (wait := self.waits_until - time.monotonic()) > 0:
            parts.append(f"the server asks to wait {timedelta(seconds=math.ceil(wait))}")
        if self.calls:
            parts += [f"{self.calls / seconds:.1f} calls/s", f"{self.tokens:,} tokens"]
        if self.money:
            parts.append(f"cost {self.money:.2f}")
        if (decided := self.done - self.before) > 0:
            parts.append(f"{decided / seconds:.1f} items/s")
            if self.done < self.total:
                parts.append(f"{timedelta(seconds=round((self.total - self.done) * seconds / decided))} left")
        return "  ".join(parts)

    def _tell(self) -> None:
        if self.drawn:
            self.bar.update(self.task, completed=self.done, told=self.line())
        elif time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            self._print()

    def _print(self) -> None:
        print(f"{self.stage}  {self.done}/{self.total}  {self.line()}", file=sys.stderr, flush=True)  # noqa: T201
