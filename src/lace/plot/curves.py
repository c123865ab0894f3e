"""Accuracy of an evaluation report against the number of threads or their budget, tokens, and steps (latency).

A line is one group of models, all its training seeds taken together, with the report's 95 % intervals. Threads that
talk answer with their own choice (`acc`), independent ones with the better of their selections at each point, as in the
report's table of differences; an oracle's choice among the latter (`pass@N`) is dotted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lace.eval.report import SELECTIONS
from lace.plot.style import DASHES, MARKERS, PERCENT, PLAIN, look, style

X_AXES = {
    "threads": "threads N",
    "max_tokens": "budget, tokens of a thread",
    "tokens": "tokens of a puzzle, all threads",
    "steps": "steps of a puzzle (latency)",
}
AGAINST = {"threads": "the number of threads", "max_tokens": "the budget of a thread"}
BESIDE = {"threads": "N", "max_tokens": "the budget"}
"""What is written beside the points of latency."""
_NEEDED = ("group", "strategy", "threads", "max_tokens", "n", "metrics", "tokens", "steps")


@dataclass(frozen=True)
class Curve:
    """One line: a group at one budget and several numbers of threads, or the other way round."""

    label: str
    group: str
    """What the colour stands for."""
    fixed: int
    """The budget, or the number of threads, that the dashes stand for."""
    rows: list[dict[str, Any]]
    """Points, in order."""

    @property
    def independent(self) -> bool:
        return bool(self.rows[0]["strategy"] == "independent")

    def answers(self, end: str = "value") -> list[float]:
        """Accuracy of the chosen answers, or the `low` or `high` ends of its intervals."""
        names = SELECTIONS if self.independent else ("acc",)
        of_rows = [[row["metrics"][name] for name in names] for row in self.rows]
        return [max(metrics, key=lambda metric: float(metric["value"]))[end] for metrics in of_rows]

    def oracle(self) -> list[float]:
        return [row["metrics"]["pass@N"]["value"] for row in self.rows]


def read_report(path: Path) -> dict[str, Any]:
    """Reads a report of `lace eval`, of `lace bench`, or of `lace observe`.

    Raises:
        ValueError: one line, if it is none of these.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not valid JSON") from None
    if isinstance(report, dict) and ("bench" in report or "observed" in report):
        return report
    if not isinstance(report, dict) or not report.get("groups") or "task" not in report:
        raise ValueError(f"{path} is no report of lace eval: it has no task with groups")
    for number, row in enumerate(report["groups"]):
        if missing := [name for name in _NEEDED if name not in row]:
            raise ValueError(f"{path}, group {number} lacks {', '.join(missing)}")
    return report


def report_figure(report: dict[str, Any], title: str) -> tuple[Figure, str | None]:
    """The figure of a report.

    Args:
        report: as `read_report` returns it.
        title: its name, for messages.

    Returns:
        The figure, and a line that says what it lacks, if it lacks something.

    Raises:
        ValueError: if the report has one number of threads and one budget only, so that there is no curve.
    """
    rows = report["groups"]
    counts, budgets = (sorted({row[name] for row in rows}) for name in ("threads", "max_tokens"))
    if len(counts) == len(budgets) == 1:
        raise ValueError(
            f"no curve to plot: {title} is of N = {counts[0]} and {budgets[0]} tokens a thread only; "
            "evaluate several numbers of threads, e.g. --threads 1,2,4,8"
        )
    along, fixed = ("threads", "max_tokens") if len(counts) >= len(budgets) else ("max_tokens", "threads")
    curves = make_curves(rows, along, fixed)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    dashes = dict(zip(sorted({curve.fixed for curve in curves}), DASHES * len(curves), strict=False))
    shown = [along, "tokens", "steps"]
    with style():
        figure = Figure(figsize=(4.0 * len(shown), 4.2), layout="constrained")
        panels = list(figure.subplots(1, len(shown), sharey=True, squeeze=False).flat)
        for panel, name in zip(panels, shown, strict=True):
            for curve in curves:
                _draw(panel, curve, name, along, groups.index(curve.group), dashes[curve.fixed])
            _dress(panel, name, counts if along == "threads" else budgets)
        panels[-1].set_xlabel(f"{X_AXES['steps']}; beside each point {BESIDE[along]}")
        panels[0].set_ylabel("accuracy of the chosen answer")
        panels[0].yaxis.set_major_formatter(PERCENT)
        about = f"Accuracy against {AGAINST[along]}: {report['task']}, n = {rows[0]['n']}, 95 % intervals"
        figure.suptitle(about, x=0.01, ha="left", weight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        if any(curve.independent for curve in curves):
            handles += panels[0].plot([], [], color="#555555", linestyle=":", linewidth=1.2)
            labels.append("an oracle's choice among independent threads (pass@N)")
        figure.legend(handles, labels, loc="outside lower left", ncols=4, handlelength=3)
    if len(counts) > 1:
        return figure, None
    return figure, f"no panel against N: all rows have N = {counts[0]}; add more with --threads 1,2,4,8"


def make_curves(rows: Sequence[dict[str, Any]], along: str, fixed: str) -> list[Curve]:
    """Sorts rows into lines; `along` and `fixed` are `threads` and `max_tokens` or the other way round."""
    several = len({row[fixed] for row in rows}) > 1
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["group"], row[fixed]), []).append(row)
    curves = []
    for (group, value), points in lines.items():
        label = f"{group}, best selection" if points[0]["strategy"] == "independent" else group
        if several:
            label += f", {value} tokens" if fixed == "max_tokens" else f", N = {value}"
        curves.append(Curve(label, group, value, sorted(points, key=lambda row: int(row[along]))))
    return curves


def _draw(panel: Axes, curve: Curve, name: str, along: str, number: int, dashes: str) -> None:
    colour, marker = look(number)["color"], MARKERS[number % len(MARKERS)]
    x = [row[name] for row in curve.rows]
    value, low, high = (curve.answers(end) for end in ("value", "low", "high"))
    panel.plot(x, value, marker=marker, markersize=4.5, color=colour, linestyle=dashes, label=curve.label)
    if curve.independent:
        panel.plot(x, curve.oracle(), color=colour, linestyle=":", linewidth=1.2)
    if name == "steps":  # which may stay the same or fall while N grows: no place for a band
        panel.vlines(x, low, high, color=colour, linewidth=5, alpha=0.25)
        for place, height, row in zip(x, value, curve.rows, strict=True):
            text = str(row[along])
            panel.annotate(text, (place, height), (6, -3), textcoords="offset points", fontsize=7, color=colour)
    else:
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _dress(panel: Axes, name: str, ticks: Sequence[int]) -> None:
    panel.set_xlabel(X_AXES[name])
    if name == "threads":
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks)
    elif name == "max_tokens":
        panel.set_xticks(ticks)
    elif name == "tokens":
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if name != "steps":
        panel.xaxis.set_major_formatter(PLAIN)
        panel.xaxis.set_minor_locator(NullLocator())
