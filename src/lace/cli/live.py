"""The live view of `lace solve`: one column per thread."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from lace.engine.result import LatticeResult, TokenEvent

_STYLES = {"best": "bold green", "success": "green", "fail": "red"}


class ThreadColumns:
    """A context manager that draws the threads side by side while they write."""

    def __init__(self, threads: int, console: Console | None = None) -> None:
        self.texts = [""] * threads
        self.labels = [0] * threads
        self.ends: list[str | None] = [None] * threads
        self.chosen: int | None = None
        self.live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def write(self, event: TokenEvent) -> None:
        """Takes a token; `show` draws it."""
        self.labels[event.thread] = event.label
        if event.logprob is not None or event.token_id is None:  # the opening is the column's title already
            self.texts[event.thread] += event.text
        if event.finish_reason is not None:
            self.ends[event.thread] = event.finish_reason

    def finish(self, result: LatticeResult) -> None:
        """Marks the chosen thread and draws the last picture."""
        self.chosen = result.chosen
        self.show()

    def show(self) -> None:
        width = max(18, min(34, self.live.console.width // min(len(self.texts), 4) - 1))
        self.live.update(Columns([self._panel(n, width) for n in range(len(self.texts))]), refresh=True)

    def _panel(self, n: int, width: int) -> Panel:
        state, style = thread_state(self.texts[n], self.ends[n])
        title = f"Thread {self.labels[n]}" + (" *" if n == self.chosen else "")
        body = Text(re.sub(r"( no [^,]*,) ", r"\1\n", self.texts[n]).strip())  # a line for each attempt that failed
        body.highlight_words([" yes"], "bold green")
        body.highlight_regex(r"\bsee\b", "bold cyan")
        border = "bold green" if n == self.chosen else style
        return Panel(body, title=title, subtitle=state, width=width, border_style=border)


def thread_state(text: str, end: str | None) -> tuple[str, str]:
    """What a thread is doing, in a word or two, and the style to show it in."""
    if tags := re.findall(r"\[\[(\w+)\]\]", text):
        return tags[-1], _STYLES.get(tags[-1], "white")
    if end is not None:
        return {"length": "out of tokens", "lattice": "closed early"}.get(end, "finished"), "dim"
    if seen := re.findall(r"\bsee\b.*\byes (\d+)", text):
        return f"agrees with thread {seen[-1]}", "cyan"
    if re.search(r"\bsee\b", text):
        return "checks a solution", "cyan"
    if re.search(r"\byes\b", text):
        return "has a solution", "green"
    return "searching", "white"
