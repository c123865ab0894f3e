"""`lace plot`: figures of training runs, of evaluations, of step times, and of what threads read of each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|REPORT|TRACE...",
            help="Folders of training runs (or their log.jsonl), drawn over one another; reports of lace eval, "
            "lace bench and lace observe (.json); traces of lace solve (.trace), taken together.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("plots"),
) -> None:
    """Draw training runs against steps, accuracy against threads or budgets, tokens and steps, step times and the
    lattice's overhead against threads and length, and what threads read of each other, as PNG and SVG.

    Runs make training, and where lattices were observed gate and cross_thread_attention. A report makes a figure of its
    own name, one of lace observe several: NAME-gates, NAME-life, NAME-diversity, and for each task NAME-TASK-moments
    and NAME-TASK-heads. So do traces, as traces-….
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("plots need matplotlib: pip install 'lace-llm[plot]'")
    from lace.plot.curves import read_report, report_figure
    from lace.plot.exchange import exchange_figures
    from lace.plot.growth import growth_figure
    from lace.plot.runs import read_runs, run_figures
    from lace.plot.style import save

    reports = [path for path in sources if path.suffix == ".json"]
    traces = [path for path in sources if path.suffix == ".trace"]
    runs = [path for path in sources if path not in reports and path not in traces]
    figures = run_figures(read_runs(runs)) if runs else {}
    if traces:
        from lace.viz.exchange import pool
        from lace.viz.trace import Trace

        pooled = pool([Trace.load(path) for path in traces])
        drawn = exchange_figures({"observed": "traces", "tasks": {"traces": pooled}})
        figures |= {f"traces-{name.removeprefix('traces-')}": figure for name, figure in drawn.items()}
    for path in reports:
        if path.stem in figures:
            raise ValueError(f"two figures would be called {path.stem}; plot {path} by itself")
        report = read_report(path)
        if "observed" in report:
            figures |= {f"{path.stem}-{name}": figure for name, figure in exchange_figures(report).items()}
            continue
        if "bench" in report:
            figures[path.stem] = growth_figure(report, path.stem)
            continue
        figures[path.stem], note = report_figure(report, path.stem)
        if note:
            typer.echo(f"{path}: {note}", err=True)
    for path in save(figures, out):
        typer.echo(path)
