"""The evaluation: judged exactly, paired, the same when interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.result import LatticeResult, ThreadResult
from lace.engine.sampling import SamplingParams
from lace.eval.countdown import Cell, evaluate, judge, summarise
from lace.tasks.countdown import Puzzle


def thread(index: int, text: str, tag: str | None, answer: str | None) -> ThreadResult:
    return ThreadResult(index, index + 1, text, [1, 2], [-1.0, -1.0], "eos", tag, answer)  # type: ignore[arg-type]


def test_judge_counts_what_the_verifier_says() -> None:
    puzzle = Puzzle((3, 7, 12), 33)
    threads = [
        thread(
            0, "(x*y)+z 7 * 3 = 21 , 21 + 12 = 33 yes answer: ( 7 * 3 ) + 12 [[success]]", "success", "( 7 * 3 ) + 12"
        ),
        thread(1, "(x*y)+z 7 * 3 = 22 , 22 + 12 = 34 no answer: 7 + 3 + 12 [[best]]", "best", "7 + 3 + 12"),
        thread(2, "(x+y)+z 7 + 3 = 10 , 12 + 10 = 22 no answer: none [[fail]]", "fail", None),
    ]
    outcome = judge(puzzle, LatticeResult(puzzle.prompt, "lace", threads, 1, "best_tag", 9, 6, 20, 0.5), 0.25)
    assert (outcome.acc, outcome.passed, outcome.tag_valid) == (0, 1, 1)
    assert outcome.mean == pytest.approx(1 / 3)
    assert outcome.vote == 1  # the first of two equally frequent answers
    assert (outcome.steps, outcome.false_steps, outcome.attempts, outcome.distinct_attempts) == (6, 1, 3, 2)


CELLS = [Cell("countdown", "lace", 2), Cell("countdown-isolated", "independent", 2)]
SETTINGS = {"n": 6, "seed": 3, "numbers": 3, "sampling": SamplingParams(max_tokens=20)}


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {cell.model: load_engine(cell.model) for cell in CELLS}


def test_interrupted_evaluation_goes_on_where_it_stopped(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lace.eval.countdown.CHUNK_ROWS", 4)
    whole = evaluate(engines, CELLS, **SETTINGS)  # type: ignore[arg-type]
    partial = tmp_path / "report.json.partial"

    def stop(cell: Cell, done: int) -> None:
        if cell == CELLS[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(engines, CELLS, **SETTINGS, partial=partial, progress=stop)  # type: ignore[arg-type]
    with partial.open("a") as file:
        file.write('{"key": {"cut of')  # killed while writing
    before = partial.read_text().count("\n")
    resumed = evaluate(engines, CELLS, **SETTINGS, partial=partial)  # type: ignore[arg-type]
    assert before == 8
    for cell in CELLS:
        for a, b in zip(whole[cell], resumed[cell], strict=True):
            assert {**vars(a), "seconds": 0} == {**vars(b), "seconds": 0}


def test_report_has_the_promised_shape(engines: dict[str, Engine]) -> None:
    results = evaluate(engines, CELLS, **SETTINGS)  # type: ignore[arg-type]
    report = json.loads(
        json.dumps(summarise(results, seed=3, numbers=3, sampling=SETTINGS["sampling"], command="lace eval"))
    )
    assert {"task", "n", "seed", "command", "rows", "paired"} <= set(report)
    for row in report["rows"]:
        assert {"model", "strategy", "threads", "max_tokens", "metrics", "tokens", "seconds"} <= set(row)
        assert set(row["metrics"]) == {"acc", "mean@N", "vote@N", "pass@N", "tag_valid"}
        for estimate in row["metrics"].values():
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    assert [(p["a"]["metric"], p["b"]["metric"]) for p in report["paired"]][-1] == ("acc", "pass@N")
