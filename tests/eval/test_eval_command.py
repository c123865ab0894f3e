"""`lace eval` as users run it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lace.cli.defaults import MAX_TOKENS
from lace.cli.evaluate import _entry
from lace.cli.main import main
from lace.engine.sampling import SamplingParams
from lace.eval.table import markdown
from lace.tasks.task import TASKS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lace", "eval", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_default_entries_are_the_shipped_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report, table = tmp_path / "deep" / "report.json", tmp_path / "report.md"
    arguments = ["countdown", "--n", "5", "--threads", "2,4", "--max-tokens", "12", "--json", str(report)]
    assert run(monkeypatch, *arguments, "--markdown", str(table)) == 0
    told = json.loads(report.read_text())
    assert (told["n"], told["against"]) == (5, "independent")
    assert [(row["label"], row["threads"]) for row in told["rows"]] == [
        ("lace", 2), ("independent", 2), ("lace", 4), ("independent", 4),
    ]  # fmt: skip
    assert told["command"] == " ".join(["lace", "eval", *arguments, "--markdown", str(table)])
    assert list(report.parent.iterdir()) == [report]
    assert table.read_text() == markdown(told) + "\n"
    assert "Paired by puzzle" in capsys.readouterr().out


def test_several_models_strategies_seeds_and_budgets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    entries = [
        "lace/1=puzzles,temperature=0.7,top_p=0.8",
        "lace/2=puzzles-isolated,temperature=0.7,top_p=0.8",
        "swap=puzzles@swapped",
        "alone=puzzles@independent,temperature=0",
    ]
    options = [part for entry in entries for part in ("--entry", entry)]
    given = [*options, "countdown", "--n", "4", "--threads", "2", "--max-tokens", "8,12", "--split", "validation"]
    assert run(monkeypatch, *given, "--against", "swap", "--json", str(report)) == 0
    told = json.loads(report.read_text())
    assert (told["split"], told["against"]) == ("validation", "swap")
    assert [(row["label"], row["max_tokens"]) for row in told["rows"]] == [
        (label, budget) for budget in (8, 12) for label in ("lace/1", "lace/2", "swap", "alone")
    ]
    assert [(e["temperature"], e["top_p"]) for e in told["entries"]] == [(0.7, 0.8), (0.7, 0.8), (0.7, 0.9), (0.0, 0.9)]
    assert {pair["a"]["group"] for pair in told["paired"]} == {"lace", "alone"}


def test_entry_takes_directories_and_hub_ids() -> None:
    for model in ("runs/small/sft", "../elsewhere", "Qwen/Qwen3-0.6B"):
        entry = _entry(f"some={model}@independent,top_p=0.5", SamplingParams(temperature=0.3))
        assert (entry.label, entry.model, entry.strategy) == ("some", model, "independent")
        assert (entry.sampling.temperature, entry.sampling.top_p) == (0.3, 0.5)


def test_every_task_has_a_budget() -> None:
    assert set(MAX_TOKENS) == set(TASKS)


ERRORS = {
    ("chess",): "unknown task 'chess'; known are countdown, chain-sum",
    ("countdown", "--threads", "4,x"): "--threads takes whole numbers from 1 to 256, not 'x'",
    ("countdown", "--max-tokens", "0"): "--max-tokens takes whole numbers from 1 on, not '0'",
    ("countdown", "--n", "0"): "--n must be at least 1",
    ("countdown", "--temperature", "-1"): "temperature must be between",
    ("countdown", "--against", "nobody"): "no group 'nobody' to compare with",
    ("countdown", "--entry", "countdown"): "--entry must be LABEL=MODEL",
    ("countdown", "--entry", "a="): "--entry must be LABEL=MODEL",
    ("countdown", "--entry", "=puzzles"): "NAME or NAME/SEED",
    ("countdown", "--entry", "a=puzzles@vote"): "unknown strategy 'vote'",
    ("countdown", "--entry", "a=puzzles@"): "unknown strategy ''",
    ("countdown", "--entry", "a=puzzles,top_k=3"): "unknown setting 'top_k'",
    ("countdown", "--entry", "a=puzzles,top_p=much"): "must be NAME=NUMBER",
    ("countdown", "--entry", "a=puzzles,top_p=2"): "top_p must be above 0",
    ("countdown", "--entry", "a=puzzles", "--entry", "a=puzzles"): "two entries have the label 'a'",
    ("countdown", "--entry", "a=no/such-model"): "no model 'no/such-model'",
}


@pytest.mark.parametrize("arguments", list(ERRORS))
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert ERRORS[arguments] in told.err
    assert len(told.err.strip().splitlines()) == 1
