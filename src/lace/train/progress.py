"""Progress of a run on the terminal: one line that is redrawn, or, if nobody watches, a line at each log interval."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from transformers import TrainerCallback

SHOWN = ("loss", "reward", "acc")
"""The metrics that the line tells, where a stage has them."""


class RunProgress:
    """A context manager that tells how far a run is, on standard error.

    Args:
        stage: what is told first.
        steps: of the whole run.
        console: where to.
        quiet: tell nothing, in all processes but one.
    """

    def __init__(self, stage: str, steps: int, console: Console | None = None, *, quiet: bool = False) -> None:
        self.stage, self.steps, self.quiet = stage, steps, quiet
        self.console = console or Console(stderr=True)
        self.drawn = self.console.is_terminal and not quiet
        self.told = ""
        self.first: int | None = None
        columns = (TextColumn(stage), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        self.bar = RichProgress(*columns, console=self.console, disable=not self.drawn)
        self.task = self.bar.add_task(stage, total=steps, told="")

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def start(self, step: int) -> None:
        """Says where this process begins; its rate counts from here."""
        self.first, self.started = step, time.perf_counter()
        self.bar.update(self.task, completed=step)

    def advance(self, step: int) -> None:
        """Says that a step is done."""
        self.bar.update(self.task, completed=step, told=f"{self.told}  {self._rate(step)}")

    def tell(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a log interval."""
        self.told = "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
        if self.drawn:
            self.advance(step)
        elif not self.quiet and self.told:
            print(f"{self.stage}  {step}/{self.steps}  {self.told}  {self._rate(step)}", file=sys.stderr, flush=True)

    def _rate(self, step: int) -> str:
        if self.first is None or step <= self.first:
            return ""
        rate = (step - self.first) / (time.perf_counter() - self.started)
        left = timedelta(seconds=round((self.steps - step) / rate))
        return f"{rate:.2f} steps/s  {left} left" if rate >= 1 else f"{1 / rate:.1f} s/step  {left} left"


class TrainerProgress(TrainerCallback):
    """Passes what the trainer tells on to a `RunProgress`."""

    def __init__(self, progress: RunProgress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.start(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.progress.tell(state.global_step, logs or {})
