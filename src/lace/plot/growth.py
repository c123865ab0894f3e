"""Step time of a `lace bench` report: against the number of threads, and against the generated length."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lace.plot.style import PLAIN, look, style

AXES = {"threads": "threads N", "length": "generated tokens of a thread"}


def growth_figure(report: dict[str, Any], title: str) -> Figure:
    """Two panels: lines by length against N, and by N against length; dashed with the lattice off.

    Raises:
        ValueError: if no steps were timed.
    """
    rows = report.get("steps")
    if not rows:
        raise ValueError(f"no curve to plot: {title} has no step times; measure them with lace bench steps")
    with style():
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        panels = list(figure.subplots(1, 2, sharey=True))
        for panel, (along, label), other in zip(panels, AXES.items(), ("length", "threads"), strict=True):
            _draw(panel, rows, along, other)
            panel.set_xlabel(label)
        panels[0].set_ylabel("time of a step, ms")
        figure.suptitle(f"{title}: {report['bench']}, {report['dtype']}", x=0.01, ha="left", weight="bold")
        for panel, other in zip(panels, ("tokens", "N"), strict=True):
            panel.legend(title=f"{other} (dashed: lattice off)", fontsize="small")
    return figure


def _draw(panel: Axes, rows: list[dict[str, Any]], along: str, other: str) -> None:
    for number, value in enumerate(sorted({row[other] for row in rows})):
        line = sorted((row for row in rows if row[other] == value), key=lambda row: row[along])
        places, colour = [row[along] for row in line], look(number)["color"]
        panel.plot(places, [row["on_ms"] for row in line], color=colour, marker="o", markersize=3, label=f"{value}")
        panel.plot(places, [row["off_ms"] for row in line], color=colour, linestyle="--", linewidth=1.2)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_major_formatter(PLAIN)
    panel.yaxis.set_major_formatter(PLAIN)
