"""`lace eval`: accuracy with intervals, strategies side by side."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lace.cli.defaults import MAX_TOKENS, SHIPPED_LACE, TOP_P

app = typer.Typer(help="Measure a model on unseen puzzles, with 95 % intervals.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A callback keeps `eval` a group, though it has one task so far."""


@app.command("countdown")
def countdown(
    model: Annotated[str, typer.Option(help="Shipped name, hub id or directory.")] = SHIPPED_LACE,
    independent_model: Annotated[
        str | None,
        typer.Option(
            help="Model of the strategy independent. Default: the shipped model's twin that was trained on isolated "
            "traces; for any other model the same one with its lattice off."
        ),
    ] = None,
    strategies: Annotated[str, typer.Option(help="Comma-separated: lace, independent.")] = "lace,independent",
    threads: Annotated[str, typer.Option(help="Comma-separated numbers of threads.")] = "4,8",
    n: Annotated[int, typer.Option(help="Different puzzles of the test split.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the choice of puzzles and of all draws.")] = 7,
    numbers: Annotated[int, typer.Option(help="Numbers in a puzzle: 3 or 4.")] = 3,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Budget of sampled tokens per thread, the same for all. Default: 100, or 150 for 4."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of all sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of all sampling: keep the likeliest tokens of this mass.")] = TOP_P,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report there; an interrupted run goes on from FILE.partial."),
    ] = None,
) -> None:
    """Countdown: accuracy, mean@N, vote@N, pass@N and tag validity, and paired differences between strategies."""
    from rich.progress import Progress

    from lace.cli.models import independent_model as default_independent
    from lace.cli.models import load_engine
    from lace.engine.result import STRATEGIES
    from lace.engine.sampling import SamplingParams
    from lace.eval.countdown import Cell, evaluate, summarise

    counts = [_positive(text, "--threads") for text in threads.split(",")]
    chosen = [text.strip() for text in strategies.split(",")]
    if unknown := [text for text in chosen if text not in STRATEGIES]:
        raise ValueError(f"unknown strategy {unknown[0]!r} in --strategies; known are {', '.join(STRATEGIES)}")
    if numbers not in MAX_TOKENS:
        raise ValueError(f"--numbers must be 3 or 4, not {numbers}")
    if n < 1:
        raise ValueError(f"--n must be at least 1, not {n}")
    budget = MAX_TOKENS[numbers] if max_tokens is None else max_tokens
    sampling = SamplingParams(max_tokens=budget, temperature=temperature, top_p=top_p)
    names = {"lace": model, "independent": independent_model or default_independent(model)}
    cells = [Cell(names[s], s, count) for count in counts for s in STRATEGIES if s in chosen]
    engines = {name: load_engine(name) for name in {cell.model for cell in cells}}
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    partial = json_file.with_name(json_file.name + ".partial") if json_file else None
    with Progress(disable=not sys.stderr.isatty(), console=_stderr()) as bar:
        tasks = {cell: bar.add_task(f"{cell.strategy} N={cell.threads}", total=n) for cell in cells}
        results = evaluate(
            engines,
            cells,
            n=n,
            seed=seed,
            numbers=numbers,
            sampling=sampling,
            partial=partial,
            progress=lambda cell, done: bar.update(tasks[cell], completed=done),
        )
    command = shlex.join(["lace", *sys.argv[1:]])
    report = summarise(results, seed=seed, numbers=numbers, sampling=sampling, command=command)
    if json_file is not None and partial is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.unlink(missing_ok=True)
    _print(report)


def _positive(text: str, option: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{option} takes whole numbers from 1 on, not {text!r}")
    return int(text)


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    names = list(report["rows"][0]["metrics"])
    title = f"Countdown, {report['numbers']} numbers, n = {report['n']}, seed {report['seed']}; % [95 % interval]"
    table = Table("model", "strategy", "N", *names, "tokens", "s", "false steps", "distinct", title=title)
    for row in report["rows"]:
        cells = [_percent(row["metrics"][name]) for name in names]
        table.add_row(
            row["model"],
            row["strategy"],
            str(row["threads"]),
            *cells,
            f"{row['tokens']:.0f}",
            f"{row['seconds']:.2f}",
            f"{100 * row['false_steps']:.2f} %",
            f"{100 * row['distinct_attempts']:.0f} %",
        )
    console.print(table)
    if report["paired"]:
        paired = Table("N", "difference, in points", "[95 % interval]", title="Paired by puzzle")
        for pair in report["paired"]:
            names_of = [f"{pair[side]['strategy']} {pair[side]['metric']}" for side in "ab"]
            paired.add_row(str(pair["threads"]), " - ".join(names_of), _percent(pair["difference"], sign="+"))
        console.print(paired)


def _percent(estimate: dict[str, float], sign: str = "") -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} \\[{low:{sign}.1f}, {high:{sign}.1f}]"
