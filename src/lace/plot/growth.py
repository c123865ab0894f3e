"""Overhead and growth of a `lace bench` report: step time, and its ratio to that with the lattice off, against the
number of threads and against the generated length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lace.plot.style import MARKERS, PLAIN, look, style

AXES = {"threads": "threads N", "length": "generated tokens of a thread"}
LEGENDS = {"threads": "N", "length": "tokens"}


def growth_figure(report: dict[str, Any], title: str) -> Figure:
    """A column for each of `AXES` along which there are several values; above the times, below their ratio.

    Raises:
        ValueError: if there are no step times, or those of one point alone.
    """
    rows = report.get("steps")
    if not rows:
        raise ValueError(f"no curve to plot: {title} has no step times; measure them with lace bench steps")
    shown = [along for along in AXES if len({row[along] for row in rows}) > 1]
    if not shown:
        raise ValueError(
            f"no curve to plot: {title} has step times of one N and length only; "
            "measure several, e.g. lace bench steps --threads 1,2,4,8"
        )
    with style():
        figure = Figure(figsize=(1.0 + 3.8 * len(shown), 5.4), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False, sharex="col", sharey="row")
        for (times, ratios), along in zip(grid.T, shown, strict=True):
            other = "length" if along == "threads" else "threads"
            _draw(times, ratios, rows, along, other)
            ratios.set_xlabel(AXES[along])
            # Above the lines, which fill the panel up to its top where the times grow.
            title = f"{LEGENDS[other]} (dashed: lattice off)"
            lines = len(times.get_legend_handles_labels()[0])
            times.legend(title=title, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=lines)
        grid[0, 0].set_ylabel("time of a step, ms")
        grid[1, 0].set_ylabel("lattice on / off")
        about = f"{report['bench']}, {report['dtype']}, {report['device']}"
        figure.suptitle(f"Step time, lattice on and off: {about}", x=0.01, ha="left", weight="bold")
    return figure


def _draw(times: Axes, ratios: Axes, rows: Sequence[dict[str, Any]], along: str, other: str) -> None:
    for number, value in enumerate(sorted({row[other] for row in rows})):
        line = sorted((row for row in rows if row[other] == value), key=lambda row: row[along])
        places = [row[along] for row in line]
        colour, marker = look(number)["color"], MARKERS[number % len(MARKERS)]
        times.plot(places, [row["on_ms"] for row in line], color=colour, marker=marker, markersize=4, label=f"{value}")
        times.plot(places, [row["off_ms"] for row in line], color=colour, linestyle="--", linewidth=1.2)
        ratios.plot(places, [row["ratio"] for row in line], color=colour, marker=marker, markersize=4)
    ratios.axhline(1, color="#555555", linewidth=0.8)
    times.set_yscale("log", base=2)
    for panel in (times, ratios):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted({row[along] for row in rows}))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(PLAIN)
        panel.yaxis.set_major_formatter(PLAIN)
