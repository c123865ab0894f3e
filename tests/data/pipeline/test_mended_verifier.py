"""A verifier that failed, and was mended: what it said is decided anew, and no call is made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.run import run_pipeline
from teachers.puzzles import puzzle_teacher
from teachers.server import Server

CHECK = """
import time

def check(question, answer):
    {line}
    return answer == question["answer"]
"""
SUM = {"id": "q", "question": "Calculate 17 + 25 - 8.", "answer": "34"}


def reasons(config: DataConfig, newest: int) -> list[str | None]:
    """What verify said in each of its folders, the newest last."""
    folders = sorted(config.run.out.glob("stages/*-verify-*/outcomes.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert len(folders) == newest
    return [line.get("reason") for line in read_lines(folders[-1])]


@pytest.mark.parametrize(
    ("line", "seconds", "said"),
    [("raise OSError", 60.0, "verifier failed"), ("time.sleep(5)", 1.0, "verifier time-out")],
)
def test_what_a_failing_verifier_rejected_is_taken_up_again(
    make_config: Callable[..., DataConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    seconds: float,
    said: str,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"check_{said.split()[1].replace('-', '_')}"
    path = tmp_path / f"{module}.py"
    path.write_text(CHECK.format(line=line))
    (tmp_path / "q.jsonl").write_text(json.dumps(SUM) + "\n")
    source = {"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id", "verifier": f"{module}:check"}
    with Server(puzzle_teacher(errors=0.0)) as server:

        def run(seconds: float, **more: Any) -> DataConfig:
            verify = {"processes": 1, "seconds": seconds}
            config = make_config(server.url, questions={"sources": [source]}, verify=verify, **more)
            run_pipeline(config)
            return config

        assert reasons(run(seconds), 1) == [said]
        asked = dict(server.requests)
        assert reasons(run(seconds), 1) == [said], "the same verifier says the same"
        path.write_text(CHECK.format(line="pass"))
        config = run(seconds)
        assert reasons(config, 2) == [None]
        assert len(list(read_lines(config.run.out / "calls" / "solutions.jsonl"))) == len(asked)
        assert {key: server.requests[key] for key in asked} == asked, "what was asked is not asked again"
        assert reasons(run(seconds + 1), 3) == [None], "another time limit may say something else"
