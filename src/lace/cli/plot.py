"""`lace plot`: figures of training runs, of evaluation reports, and of step times."""

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
            help="Folders of training runs (or their log.jsonl), drawn over one another; reports of lace eval and "
            "lace bench (.json).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("plots"),
) -> None:
    """Draw training runs against steps, accuracy against threads, tokens and steps, and step times against threads and
    length, as PNG and SVG.

    Runs make training, and where lattices were observed gate and cross_thread_attention. A report makes a figure of its
    own name.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("plots need matplotlib: pip install 'lace-llm[plot]'")
    from lace.plot.curves import read_report, report_figure
    from lace.plot.growth import growth_figure
    from lace.plot.runs import read_runs, run_figures
    from lace.plot.style import save

    reports = [path for path in sources if path.suffix == ".json"]
    runs = [path for path in sources if path.suffix != ".json"]
    figures = run_figures(read_runs(runs)) if runs else {}
    for path in reports:
        if path.stem in figures:
            raise ValueError(f"two figures would be called {path.stem}; plot {path} by itself")
        report = read_report(path)
        if "bench" in report:
            figures[path.stem] = growth_figure(report, path.stem)
            continue
        figures[path.stem], note = report_figure(report, path.stem)
        if note:
            typer.echo(f"{path}: {note}", err=True)
    for path in save(figures, out):
        typer.echo(path)
