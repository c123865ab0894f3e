"""Training runs against steps, from their `log.jsonl`: faint points as logged, and a smoothed line through them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from lace.plot.style import PERCENT, PLAIN, look, style

TITLES = {
    "reward": "Reward of a lattice",
    "acc": "Accuracy of the chosen thread",
    "mean@N": "Accuracy of all threads (mean@N)",
    "vote@N": "Accuracy of the vote (vote@N)",
    "pass@N": "Some thread is right (pass@N)",
    "tag_valid": "Valid tags",
    "diversity": "Diversity of threads",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "clipped": "Clipped tokens",
    "logprob_gap": "Gap of log-probabilities",
    "tokens": "Sampled tokens of a step",
    "rollout_s": "Sampling of a step, s",
    "learn_s": "Learning of a step, s",
}
"""Metrics in the order of their panels; any other number of a log follows under its own name."""
LATTICE = {"gate": "Mean gate", "cross_thread_attention": "Attention to other threads"}
"""Metrics `NAME/LAYER` of the lattice's layers, see `lace.lattice.observe`; each has a figure of its own."""
_SHARES = {"acc", "mean@N", "vote@N", "pass@N", "tag_valid", "clipped", *LATTICE}
_LOGARITHMIC = {"grad_norm", "logprob_gap"}
_NOT_SHOWN = {"step", "epoch", "total_flos"}
SMOOTHED_FROM = 20
"""Points of a line that is smoothed; fewer are joined as they are."""
BANDWIDTH = 0.02
"""Standard deviation of the smoothing kernel, as a share of a line's points."""
PANEL = (3.3, 2.3)
"""Inches."""


@dataclass(frozen=True)
class Run:
    """The log of a run."""

    label: str
    lines: list[dict[str, Any]]

    def series(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of a metric, where it was logged."""
        pairs = [(line["step"], line[metric]) for line in self.lines if metric in line]
        steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return steps, values


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads the logs of runs; they are labelled by what tells their paths apart.

    Args:
        paths: folders with a `log.jsonl`, or such files.

    Raises:
        ValueError: one line, if a run has no log, a log cannot be read, or a run is given twice.
    """
    files = [_log_file(path).resolve() for path in paths]
    if len(set(files)) < len(files):
        raise ValueError("a run is given twice")
    return [Run(label, _read(file)) for label, file in zip(_labels(files), files, strict=True)]


def _log_file(path: Path) -> Path:
    file = path / "log.jsonl" if path.is_dir() else path
    if file.is_file():
        return file
    if below := sorted(path.glob("*/log.jsonl")):
        raise ValueError(f"{path} holds no log.jsonl itself; give {' or '.join(str(log.parent) for log in below)}")
    raise ValueError(f"{file} does not exist; a run is a folder with a log.jsonl")


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no log: {error}") from None
    read = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break  # being written, or cut off by a kill
        try:
            values = json.loads(line)
        except ValueError:
            raise ValueError(f"{file}, line {number}: not JSON") from None
        if not isinstance(values, dict) or "step" not in values:
            raise ValueError(f"{file}, line {number}: no JSON object with a step")
        read.append(values)
    if not read:
        raise ValueError(f"{file} is empty; the run has logged nothing yet")
    return read


def _labels(files: Sequence[Path]) -> list[str]:
    """Paths without what all of them begin and end with; of a single run the folder's name."""
    folders = [file.parent for file in files]
    if len(folders) == 1:
        return [folders[0].name]
    above = os.path.commonpath(folders)
    parts = [list(folder.relative_to(above).parts) for folder in folders]
    while len({tuple(own[-1:]) for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own) or Path(above).name for own in parts]


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of neighbouring points, Gaussian weights; centred, so that nothing lags, and without the missing ones."""
    deviation = BANDWIDTH * len(values)
    reach = math.ceil(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(deviation, 1e-9)) ** 2)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    weight = np.convolve(known.astype(np.float64), kernel, mode="same")
    return np.where(known, total / np.where(known, weight, 1.0), np.nan)


def run_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """The figures of some runs: `training`, and for lattices that were observed `gate` and `cross_thread_attention`.

    Raises:
        ValueError: if the logs hold no number to show.
    """
    logged = {metric for run in runs for line in run.lines for metric, value in line.items() if _is_number(value)}
    # What transformers sums up when a training ends begins with train_.
    shown = {m for m in logged - _NOT_SHOWN if m.partition("/")[0] not in LATTICE and not m.startswith("train_")}
    if not shown:
        raise ValueError("the logs hold nothing to plot but steps")
    with style():
        metrics = [metric for metric in TITLES if metric in shown] + sorted(shown - set(TITLES))
        figures = {"training": _training(runs, metrics)}
        for name in LATTICE:
            layers = sorted((m for m in logged if m.startswith(f"{name}/")), key=lambda m: int(m.rpartition("/")[2]))
            if layers:
                figures[name] = _layers_of_one(runs[0], name, layers) if len(runs) == 1 else _layers(runs, name, layers)
    return figures


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _training(runs: Sequence[Run], metrics: Sequence[str]) -> Figure:
    figure, panels = _panels(len(metrics))
    for panel, metric in zip(panels, metrics, strict=True):
        for number, run in enumerate(runs):
            _draw(panel, run, metric, label=run.label, **look(number))
        _dress(panel, metric, TITLES.get(metric, metric))
    _title(figure, runs, panels[0], "Training")
    return figure


def _layers_of_one(run: Run, name: str, metrics: Sequence[str]) -> Figure:
    """One panel, the layers from dark to light."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(metrics)))
    for metric, shade in zip(metrics, shades, strict=True):
        _draw(panel, run, metric, label=f"layer {metric.rpartition('/')[2]}", color=shade)
    _dress(panel, name, f"{LATTICE[name]}: {run.label}")
    panel.set_xlabel("step")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _layers(runs: Sequence[Run], name: str, metrics: Sequence[str]) -> Figure:
    """A panel for each layer, the runs over one another."""
    figure, panels = _panels(len(metrics), sharey=True)
    for panel, metric in zip(panels, metrics, strict=True):
        for number, run in enumerate(runs):
            _draw(panel, run, metric, label=run.label, **look(number))
    for panel, metric in zip(panels, metrics, strict=True):  # once all that shares the axis is drawn
        _dress(panel, name, f"{LATTICE[name]}, layer {metric.rpartition('/')[2]}")
    _title(figure, runs, panels[0], f"{LATTICE[name]} by layer, while training")
    return figure


def _panels(count: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    columns = 3 if count in (3, 5, 6) else min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for spare in grid[count:]:
        figure.delaxes(spare)
    for panel in grid[max(0, count - columns) : count]:
        panel.set_xlabel("step")
    return figure, grid[:count]


def _draw(panel: Axes, run: Run, metric: str, **line: Any) -> None:
    steps, values = run.series(metric)
    if not len(steps):
        panel.plot([], [], **line)  # keeps the run's entry in the legend
    elif metric == "learning_rate":
        panel.plot(steps, values, **line)
    else:
        panel.plot(steps, values, ".", color=line["color"], alpha=0.25, markersize=4, markeredgewidth=0)
        panel.plot(steps, smooth(values) if len(values) >= SMOOTHED_FROM else values, **line)


def _dress(panel: Axes, metric: str, title: str) -> None:
    panel.set_title(title)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if metric in _SHARES:
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, -0.02), min(high, 1.02))
        panel.yaxis.set_major_formatter(PERCENT)
    elif metric in _LOGARITHMIC:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(PLAIN)
    else:
        panel.yaxis.set_major_formatter(PLAIN)


def _title(figure: Figure, runs: Sequence[Run], panel: Axes, title: str) -> None:
    what = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    figure.suptitle(f"{title}: {what}", x=0.01, ha="left", weight="bold")
    if len(runs) > 1:
        handles, labels = panel.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=min(len(runs), 4))
