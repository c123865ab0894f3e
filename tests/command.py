"""What a run of the command left behind."""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str
