"""Step times as curves, and their ratio."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from lace.plot.growth import growth_figure


def _report(threads: list[int], lengths: list[int]) -> dict[str, Any]:
    rows = [
        {"threads": n, "length": t, "on_ms": 2.0 * n + t, "off_ms": 1.0 * n + t, "ratio": 1 + n / 10}
        for n, t in product(reversed(threads), lengths)
    ]
    return {"bench": "model", "dtype": "float32", "device": "cpu", "steps": rows}


def test_times_and_ratios_along_both() -> None:
    figure = growth_figure(_report([1, 4], [8, 16, 32]), "growth")
    assert figure.get_suptitle() == "Step time, lattice on and off: model, float32, cpu"
    by_threads, by_length, ratio_by_threads, ratio_by_length = figure.axes
    assert [len(panel.lines) for panel in figure.axes] == [6, 4, 4, 3]  # on and off; ratios, and a line at 1
    assert by_threads.lines[0].get_xdata().tolist() == [1, 4]
    assert by_threads.lines[0].get_ydata().tolist() == [10, 16]  # at the shortest length, the lattice on
    assert by_threads.lines[1].get_ydata().tolist() == [9, 12]
    assert by_length.lines[2].get_ydata().tolist() == [16, 24, 40]  # at N = 4
    assert ratio_by_threads.lines[0].get_ydata().tolist() == [1.1, 1.4]
    assert ratio_by_length.get_xlabel() == "generated tokens of a thread"
    assert [text.get_text() for text in by_length.get_legend().get_texts()] == ["1", "4"]


def test_one_length_leaves_one_column() -> None:
    figure = growth_figure(_report([4, 8, 32], [100]), "step_time")
    assert [panel.get_xlabel() for panel in figure.axes] == ["", "threads N"]


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no curve to plot: one has step times of one N and length only; measure"):
        growth_figure(_report([4], [100]), "one")
    with pytest.raises(ValueError, match="no curve to plot: cache has no step times; measure them with lace bench"):
        growth_figure({"bench": "model"}, "cache")
