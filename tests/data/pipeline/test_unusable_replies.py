"""Replies that could not be used are counted by stage and reason, also where asking again helped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from lace.cli.data_view import print_stats
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.run import run_pipeline
from lace.data.pipeline.stats import run_stats
from teachers.faults import spoil
from teachers.puzzles import puzzle_teacher
from teachers.server import Answer, Request, Server

KINDS = {"You write": "solutions", "You edit": "steps", "You let": "notes", "You compare": "notes"}
FAULTS = ("malformed", "truncated", "empty", "refusal")


def test_replies_that_were_asked_again_are_counted(make_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    teacher, spoilt, number = puzzle_teacher(), Counter[str](), [0]

    def script(request: Request) -> Answer:
        number[0] += 1
        if number[0] % 5:
            return teacher(request)
        fault = FAULTS[number[0] // 5 % len(FAULTS)]
        stage = next(name for words, name in KINDS.items() if request.prompt.startswith(words))
        spoilt[stage] += 1
        return spoil(fault, teacher(request))

    rows = [{"id": f"q{n}", "question": f"Calculate {n} + 25 - 8.", "answer": str(n + 17)} for n in range(10, 22)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}
    with Server(script) as server:
        config = make_config(server.url, questions={"sources": [source]}).model_copy(update={"asks": 4})
        run_pipeline(config)
    stats = run_stats(config.run.out)
    counted = {(stage.name, why): count for stage in stats.stages for why, count in stage.unusable.items()}
    totals = {stage.name: sum(stage.unusable.values()) for stage in stats.stages if stage.unusable}
    assert totals == spoilt
    assert {why for _, why in counted} <= set(FAULTS)
    assert len({stage for stage, _ in counted}) == 3
    assert not any(set(FAULTS) & set(stage.rejected) for stage in stats.stages), "asking again helped"
    console = Console(record=True, width=120, file=(tmp_path / "shown").open("w"))
    print_stats(stats, console)
    shown = console.export_text()
    assert "replies that could not be used" in shown
    for (stage, why), count in counted.items():
        assert any(
            [stage, why, str(count)] == [cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()
        )
