"""The command as users run it, within this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from command import Run
from lace.cli.main import main


@pytest.fixture
def lace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """All of `main`, without importing torch anew each time."""

    def run(*arguments: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["lace", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run
