"""Curves of evaluation reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from lace.plot.curves import read_report, report_figure
from lace.plot.style import COLOURS, MARKERS


def _row(group: str, threads: int, max_tokens: int = 100) -> dict[str, Any]:
    strategy = "independent" if group == "isolated" else "lace"
    value = 0.1 * threads if strategy == "lace" else 0.05 * threads
    estimates = {"acc": value, "vote@N": value / 2, "self_verified": value * threads / 6, "pass@N": value + 0.1}
    return {
        "group": group,
        "strategy": strategy,
        "threads": threads,
        "max_tokens": max_tokens,
        "n": 500,
        "metrics": {name: {"value": v, "low": v - 0.02, "high": v + 0.02} for name, v in estimates.items()},
        "tokens": threads * max_tokens / 2,
        "steps": max_tokens - threads,
    }


def _report(counts: list[int], budgets: list[int]) -> dict[str, Any]:
    return {
        "task": "countdown",
        "groups": [_row(g, n, m) for g in ("lace", "isolated") for m in budgets for n in reversed(counts)],
    }


def test_curves_against_threads_tokens_and_steps() -> None:
    figure, note = report_figure(_report([1, 2, 4], [100]), "width")
    assert note is None
    assert figure.get_suptitle() == "Accuracy against the number of threads: countdown, n = 500, 95 % intervals"
    threads, tokens, steps = figure.axes
    for panel, lace_x, isolated_x in (
        (threads, [1, 2, 4], [1, 2, 4]),
        (tokens, [50, 100, 200], [50, 100, 200]),
        (steps, [99, 98, 96], [99, 98, 96]),
    ):
        lace, isolated, oracle = panel.lines[:3]
        assert lace.get_xdata().tolist() == lace_x
        assert isolated.get_xdata().tolist() == isolated_x
        assert lace.get_ydata() == pytest.approx([0.1, 0.2, 0.4])
        assert isolated.get_ydata() == pytest.approx(
            [0.025, 0.05, 4 / 30]
        )  # the vote, and where it is better self-verification
        assert oracle.get_ydata() == pytest.approx([0.15, 0.2, 0.3])
        assert (lace.get_color(), isolated.get_color(), oracle.get_color()) == (COLOURS[0], COLOURS[1], COLOURS[1])
    band = threads.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.08, 0.42))
    assert (threads.get_xscale(), tokens.get_xscale(), steps.get_xscale()) == ("log", "log", "linear")
    assert [panel.get_xlabel().partition(" ")[0] for panel in figure.axes] == ["threads", "tokens", "steps"]
    assert [text.get_text() for text in steps.texts] == ["1", "2", "4"] * 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["lace", "isolated, best selection"]
    assert "pass@N" in labels[2]


def test_budgets_have_dashes_of_their_own() -> None:
    figure, _ = report_figure(_report([1, 2], [50, 100]), "both")
    lines = [line for line in figure.axes[0].lines if line.get_marker() in MARKERS]
    assert [(line.get_label(), line.get_linestyle()) for line in lines] == [
        ("lace, 50 tokens", "-"),
        ("lace, 100 tokens", "--"),
        ("isolated, best selection, 50 tokens", "-"),
        ("isolated, best selection, 100 tokens", "--"),
    ]


def test_more_budgets_than_numbers_of_threads() -> None:
    """The curve runs over budgets, and a line is of one number of threads."""
    figure, note = report_figure(_report([4, 8], [50, 100, 200]), "budget")
    assert note is None
    lines = [line for line in figure.axes[0].lines if line.get_marker() in MARKERS]
    assert [(line.get_label(), line.get_xdata().tolist()) for line in lines[:2]] == [
        ("lace, N = 8", [50, 100, 200]),
        ("lace, N = 4", [50, 100, 200]),
    ]
    assert figure.axes[2].get_xlabel().endswith("beside each point the budget")


def test_one_number_of_threads() -> None:
    """Leaves the curve over budgets, or none."""
    figure, note = report_figure(_report([8], [50, 100, 200]), "budget")
    assert note == "no panel against N: all rows have N = 8; add more with --threads 1,2,4,8"
    assert [panel.get_xlabel().partition(" ")[0] for panel in figure.axes] == ["budget,", "tokens", "steps"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [50, 100, 200]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [200, 400, 800]
    assert [text.get_text() for text in figure.axes[2].texts] == ["50", "100", "200"] * 2
    with pytest.raises(ValueError, match="single is of N = 8 and 100 tokens a thread only; evaluate several"):
        report_figure(_report([8], [100]), "single")


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "no report of lace eval"),
        ('{"rows": []}', "no report of lace eval"),
        (
            json.dumps({"task": "countdown", "groups": [_row("lace", 2), {"group": "lace"}]}),
            "group 1 lacks strategy, threads",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_report(path)
