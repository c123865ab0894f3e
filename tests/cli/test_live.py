"""The live view: what a thread's text says about its state, and that it draws."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lace.cli.live import ThreadColumns, thread_state
from lace.engine.result import TokenEvent


@pytest.mark.parametrize(
    ("text", "end", "state"),
    [
        ("", None, "searching"),
        ("(x+y)+z 3 + 4 = 7 , 7 + 5 = 12 no", None, "searching"),
        ("(x+y)+z 3 + 4 = 7 , 7 + 5 = 12 yes", None, "has a solution"),
        ("(x+y)+z (x*y)+z see 3 * 4", None, "checks a solution"),
        ("(x+y)+z (x*y)+z see 3 * 4 = 12 , 12 + 5 = 17 yes 19 answer:", None, "agrees with thread 19"),
        ("answer: none [[fail]]", "eos", "fail"),
        ("answer: 3 + 4 [[best]]", "eos", "best"),
        ("(x+y)+z 3 +", "length", "out of tokens"),
        ("(x+y)+z 3 +", "lattice", "closed early"),
    ],
)
def test_state(text: str, end: str | None, state: str) -> None:
    assert thread_state(text, end)[0] == state


def test_draws_every_thread_with_its_label() -> None:
    screen = io.StringIO()
    with ThreadColumns(2, Console(file=screen, force_terminal=True, width=80)) as columns:
        for thread, label in enumerate((17, 4)):
            columns.write(TokenEvent(0, thread, label, 5, "Thread", None, None))
            columns.write(TokenEvent(0, thread, label, 6, " seven [x]", -0.5, None))
        columns.show()
    text = screen.getvalue()
    assert "Thread 17" in text
    assert "Thread 4" in text
    assert "seven [x]" in text
