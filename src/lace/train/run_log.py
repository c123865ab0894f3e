"""The record of a run: a file with one JSON object of metrics a line, which plots and tables are made from, and its
checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Writes one line, made of the metrics of one step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget_after(path: Path, step: int) -> None:
    """Drops the lines of later steps, which a resumed run writes anew, and one that a kill has cut off."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def checkpoints(output: Path, last_written: str = "") -> list[Path]:
    """The complete checkpoints of a run, oldest first: folders `checkpoint-STEP`.

    Args:
        output: of the run.
        last_written: the file that is written last, without which a kill has left the folder unfinished; empty if
            folders come into their place complete.
    """
    complete = [path for path in output.glob("checkpoint-*") if (path / last_written).exists()]
    return sorted(complete, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def check_tracker(name: str | None) -> None:
    """Refuses a tracker whose library is missing, which accelerate would leave out without a word.

    Raises:
        ValueError: one line.
    """
    if name is not None and find_spec(name) is None:
        raise ValueError(f"{name} is not installed: pip install {name}, or leave report_to out")
