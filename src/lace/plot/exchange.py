"""Figures of a `lace observe` report, or of traces: gates, attention to other threads over the life of a thread and
around the moments that matter, diversity over time, and what each head reads and is needed for.

A line is a layer, from dark to light; bands are 95 % intervals over puzzles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lace.plot.style import PERCENT, PLAIN, look, style
from lace.viz.exchange import BINS, REACH, WINDOW

READINGS = {"share": "attention to others", "through": "the same times gate"}
TITLES = {
    "first": "first idea",
    "choice": "a new idea",
    "take-over": "another's idea",
    "again": "said again",
    "see": "see",
    "verdict": "a verdict",
    "finding": "what was found",
    "work": "arithmetic",
    "waiting": "waiting",
    "closing": "answer",
    "tag": "the closing tag",
    "end": "end",
}
PANEL = (3.3, 2.5)
WIDE = (4.8, 2.6)
"""Inches; of figures with a panel for each task."""


def exchange_figures(report: dict[str, Any]) -> dict[str, Figure]:
    """`gates`, `life`, `diversity`, and for each task `TASK-moments` and `TASK-heads`."""
    tasks: dict[str, dict[str, Any]] = report["tasks"]
    title = report["observed"]
    with style():
        figures = {
            "gates": _gates(tasks, f"Gates and attention to other threads by layer: {title}"),
            "life": _life(tasks, f"Attention to other threads over the life of a thread: {title}"),
            "diversity": _diversity(tasks, f"How much threads differ over time: {title}"),
        }
        for task, found in tasks.items():
            about = f"{title}, {_about(task, found)}"
            figures[f"{task}-moments"] = _moments(found, f"Attention to other threads around moments: {about}")
            figures[f"{task}-heads"] = _heads(found, f"What each head reads and is needed for: {about}")
    return figures


def _about(task: str, found: dict[str, Any]) -> str:
    return f"{task}, {found['puzzles']} puzzles, N = {', '.join(map(str, found['threads']))}"


def _estimate(of: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and half-widths; nan where there is none."""
    return np.array(of["value"], dtype=np.float64), np.array(of["half"], dtype=np.float64)


def _shades(layers: Sequence[int]) -> list[Any]:
    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(layers))))


def _grid(
    rows: int, columns: int, title: str, panel: tuple[float, float] = PANEL, beside: float = 0
) -> tuple[Figure, NDArray[Any]]:
    """Panels with a common axis in each row; `beside` is the room for a legend."""
    figure = Figure(figsize=(panel[0] * columns + beside, panel[1] * rows + 0.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row")


def _gates(tasks: dict[str, dict[str, Any]], title: str) -> Figure:
    figure, grid = _grid(1, 3, title)
    names = {"gate": "gate", **READINGS}
    for panel, (name, label) in zip(grid.flat, names.items(), strict=True):
        for number, (task, found) in enumerate(tasks.items()):
            value, half = _estimate(found[name])
            line = look(number)
            panel.errorbar(found["layers"], value, half, marker="o", markersize=4, capsize=2, label=task, **line)
        panel.set_title(label)
        panel.set_xlabel("layer")
        panel.set_xticks(next(iter(tasks.values()))["layers"])
        panel.yaxis.set_major_formatter(PERCENT)
    grid[0, 0].set_ylim(0, 1.02)
    grid[0, 0].legend()
    return figure


def _lines(panel: Axes, x: Sequence[float], of: dict[str, Any], layers: Sequence[int]) -> None:
    value, half = _estimate(of)
    for y, (layer, shade) in enumerate(zip(layers, _shades(layers), strict=True)):
        panel.plot(x, value[:, y], color=shade, marker=".", markersize=4, label=f"layer {layer}")
        panel.fill_between(x, value[:, y] - half[:, y], value[:, y] + half[:, y], color=shade, alpha=0.2, linewidth=0)


def _dress(grid: NDArray[Any], figure: Figure) -> None:
    for row, label in zip(grid, READINGS.values(), strict=True):
        row[0].set_ylabel(label)
        row[0].set_ylim(0, None)
        row[0].yaxis.set_major_formatter(PERCENT)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper")


def _life(tasks: dict[str, dict[str, Any]], title: str) -> Figure:
    figure, grid = _grid(2, len(tasks), title, WIDE, beside=1.0)
    places = ((np.arange(BINS) + 0.5) / BINS).tolist()
    for column, (task, found) in enumerate(tasks.items()):
        for row, name in enumerate(READINGS):
            _lines(grid[row, column], places, found["life"][name], found["layers"])
        grid[0, column].set_title(_about(task, found))
        grid[1, column].set_xlabel("life of a thread, from its first token to its last")
        for panel in grid[:, column]:
            panel.xaxis.set_major_formatter(PERCENT)
    _dress(grid, figure)
    return figure


def _moments(found: dict[str, Any], title: str) -> Figure:
    moments = [moment for moment, seen in found["around"].items() if seen]
    figure, grid = _grid(2, max(1, len(moments)), title, beside=1.0)
    distance = list(range(-REACH, REACH + 1))
    for column, moment in enumerate(moments):
        seen = found["around"][moment]
        for row, name in enumerate(READINGS):
            panel = grid[row, column]
            panel.axvline(0, color="#BBBBBB", linewidth=1)
            _lines(panel, distance, seen[name], found["layers"])
            panel.set_xlim(-REACH - 0.5, REACH + 0.5)
            panel.set_xticks(range(-REACH, REACH + 1, REACH // 2))
            for mean, shade in zip(found[name]["value"], _shades(found["layers"]), strict=True):
                panel.axhline(mean, color=shade, linestyle=":", linewidth=1)
        grid[0, column].set_title(f"around {TITLES[moment]} (n = {seen['n']})")
        grid[1, column].set_xlabel("tokens from it; dotted: mean of all tokens")
    _dress(grid, figure)
    return figure


def _diversity(tasks: dict[str, dict[str, Any]], title: str) -> Figure:
    figure, grid = _grid(1, len(tasks), title, WIDE)
    for panel, (task, found) in zip(grid.flat, tasks.items(), strict=True):
        lines = {"threads that read each other": found["diversity"]}
        if "independent" in found:
            lines[f"independent threads of {found['independent']['model']}"] = found["independent"]["diversity"]
        for number, (label, line) in enumerate(lines.items()):
            value, half = _estimate(line)
            panel.plot(line["steps"], value, label=label, **look(number))
            band = look(number)["color"]
            panel.fill_between(line["steps"], value - half, value + half, color=band, alpha=0.15, linewidth=0)
        panel.set_title(_about(task, found))
        panel.set_xlabel("step")
    grid[0, 0].set_ylabel(f"diversity of the last {WINDOW} tokens")
    grid[0, 0].set_ylim(0, 1.02)
    grid[0, 0].yaxis.set_major_formatter(PLAIN)
    grid[0, 0].legend(loc="lower left", fontsize="small")
    return figure


def _heads(found: dict[str, Any], title: str) -> Figure:
    """What comes through each head at each moment, and beside it what is lost when the head is silenced."""
    layers, heads, moments = found["layers"], found["heads"], found["moments"]
    silenced = {(row["layer"], row["head"]): row for row in found.get("silenced", ())}
    names: list[tuple[int, int | None]] = [(layer, head) for layer in layers for head in (*range(heads), None)]
    read_MYH = np.array([moments[moment]["heads"] for moment in moments])
    read_MYH = np.concatenate((read_MYH, read_MYH.mean(axis=2, keepdims=True)), axis=2)
    read = read_MYH.reshape(len(moments), -1).T
    size = (1.4 + 0.62 * len(moments) + (3.0 if silenced else 0), 1.9 + 0.26 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    widths = [0.62 * len(moments), 2.6] if silenced else [1.0]
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False).flat)
    panels[0].imshow(read, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(read.shape):
        colour = "white" if read[row, column] < 0.55 else "black"
        text = f"{100 * read[row, column]:.0f}"
        panels[0].text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    for edge in range(1, len(layers)):
        panels[0].axhline(edge * (heads + 1) - 0.5, color="white", linewidth=2)
    labels = [f"layer {layer}, {'all heads' if head is None else f'head {head}'}" for layer, head in names]
    panels[0].set_yticks(range(len(names)), labels)
    panels[0].set_xticks(range(len(moments)), [TITLES[moment] for moment in moments], rotation=35, ha="right")
    panels[0].set_title("gate times attention to others, %, by the token that is chosen")
    panels[0].grid(False)
    if silenced:
        panels[1].set_title("lost without it, points")
        for number, (name, label) in enumerate((("lost", "acc"), ("lost_mean", "mean@N"))):
            lost = [silenced[key][name] for key in names]
            value = 100 * np.array([each["value"] for each in lost])
            ends = 100 * np.array([[each["value"] - each["low"], each["high"] - each["value"]] for each in lost]).T
            place = np.arange(len(names)) + 0.3 * number - 0.15
            panels[1].errorbar(value, place, xerr=ends, fmt="os"[number], markersize=3, label=label, **_colour(number))
        panels[1].axvline(0, color="#555555", linewidth=0.8)
        panels[1].set_ylim(len(names) - 0.5, -0.5)
        panels[1].set_yticks(range(len(names)), [])
        panels[1].legend(fontsize="small")
    return figure


def _colour(number: int) -> dict[str, str]:
    return {"color": look(number)["color"]}
