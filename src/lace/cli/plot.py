"""`lace plot`: figures of training runs and of evaluation reports."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|REPORT...",
            help="Folders of training runs (or their log.jsonl), drawn over one another; `lace eval` reports (.json).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("plots"),
) -> None:
    """Draw training runs against steps, and accuracy against threads, tokens and steps, as PNG and SVG.

    Runs make training, and where lattices were observed gate and cross_thread_attention. A report makes a figure of its
    own name.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("plots need matplotlib: pip install 'lace-llm[plot]'")
    from lace.plot.curves import read_report, report_figure
    from lace.plot.runs import read_runs, run_figures
    from lace.plot.style import save

    reports = [path for path in sources if path.suffix == ".json"]
    runs = [path for path in sources if path.suffix != ".json"]
    figures = run_figures(read_runs(runs)) if runs else {}
    for path in reports:
        if path.stem in figures:
            raise ValueError(f"two figures would be called {path.stem}; plot {path} by itself")
        figures[path.stem], note = report_figure(read_report(path), path.stem)
        if note:
            typer.echo(f"{path}: {note}", err=True)
    for path in save(figures, out):
        typer.echo(path)
