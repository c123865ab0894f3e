"""Figures of what threads read of each other: what is drawn is what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lace.plot.exchange import exchange_figures
from lace.plot.style import save
from lace.viz.exchange import REACH, pool
from lace.viz.exchange_table import tables
from traces import synthetic_trace

TEXT = "(x+y)*z (x+y)*z 3 + 4 = 7 no , (x-y)*z see 9 - 4 = 5 yes (x-y)*z 4 answer: 5 [[success]]"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    texts = [f" {word}" for word in TEXT.split()]
    pooled = pool([synthetic_trace(threads=3, steps=40, texts=texts, seed=seed) for seed in range(3)])
    lost = {"value": 0.1, "low": 0.05, "high": 0.2}
    heads = [(layer, head) for layer in pooled["layers"] for head in (None, 0, 1)]
    silenced = [{"layer": layer, "head": head, "lost": lost, "lost_mean": lost} for layer, head in heads]
    alone = {"model": "twin", "diversity": pooled["diversity"]}
    return {"observed": "model", "tasks": {"countdown": {**pooled, "independent": alone, "silenced": silenced}}}


def test_lines_are_those_of_the_report(report: dict[str, Any]) -> None:
    figures = exchange_figures(report)
    assert list(figures) == ["gates", "life", "diversity", "countdown-moments", "countdown-heads"]
    found = report["tasks"]["countdown"]
    gates, _, through = figures["gates"].axes
    assert gates.lines[0].get_xdata().tolist() == found["layers"] == [4, 6]
    np.testing.assert_allclose(gates.lines[0].get_ydata(), found["gate"]["value"])
    np.testing.assert_allclose(through.lines[0].get_ydata(), found["through"]["value"])
    share, times_gate = figures["life"].axes
    np.testing.assert_allclose(share.lines[1].get_ydata(), np.array(found["life"]["share"]["value"])[:, 1])
    np.testing.assert_allclose(times_gate.lines[0].get_ydata(), np.array(found["life"]["through"]["value"])[:, 0])
    (panel,) = figures["diversity"].axes
    assert [line.get_label() for line in panel.lines] == ["threads that read each other", "independent threads of twin"]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), found["diversity"]["value"])


def test_one_puzzle_has_no_intervals() -> None:
    found = pool([synthetic_trace(threads=3, steps=40, texts=[f" {word}" for word in TEXT.split()])])
    report = {"observed": "model", "tasks": {"countdown": found}}
    gates = exchange_figures(report)["gates"].axes[0]
    (bars,) = gates.containers[0].lines[2]
    assert not any(segment.size for segment in bars.get_segments())
    (table,) = tables(report)
    assert table.rows
    assert not any("±" in cell for row in table.rows for cell in row)


def test_moments_and_heads(report: dict[str, Any]) -> None:
    found, figures = report["tasks"]["countdown"], exchange_figures(report)
    panels = figures["countdown-moments"].axes
    titles = [panel.get_title(loc="left").partition(" (")[0] for panel in panels[:3]]
    assert titles == ["around another's idea", "around a verdict", "around the closing tag"]  # there is no choice
    lines = [line for line in panels[0].lines if len(line.get_xdata()) == 2 * REACH + 1]
    expected = np.array(found["around"]["take-over"]["share"]["value"], dtype=float)
    np.testing.assert_allclose(lines[0].get_ydata(), expected[:, 0])
    read, lost = figures["countdown-heads"].axes
    assert [text.get_text() for text in read.get_yticklabels()][:3] == [
        "layer 4, head 0",
        "layer 4, head 1",
        "layer 4, all heads",
    ]
    values = read.images[0].get_array()
    column = list(found["moments"]).index("verdict")
    np.testing.assert_allclose(values[0, column], found["moments"]["verdict"]["heads"][0][0])
    assert [text.get_text() for text in lost.get_legend().get_texts()] == ["acc", "mean@N"]


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any], tmp_path: Path) -> None:
    written = [save({"heads": exchange_figures(report)["countdown-heads"]}, tmp_path / name) for name in "ab"]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()
