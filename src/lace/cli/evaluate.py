"""`lace eval`: accuracy with intervals, models and strategies side by side."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lace.cli.defaults import MAX_TOKENS, SHIPPED_INDEPENDENT, SHIPPED_LACE, TEMPERATURE, TOP_P
from lace.cli.outputs import check_writable
from lace.lattice.config import MAX_THREADS

if TYPE_CHECKING:
    from lace.engine.sampling import SamplingParams
    from lace.eval.run import Entry

DEFAULT_ENTRIES = (f"lace={SHIPPED_LACE}", f"independent={SHIPPED_INDEPENDENT}@independent")


def evaluate(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(MAX_TOKENS)}.")],
    entry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=MODEL[@STRATEGY][,temperature=T][,top_p=P]",
            help="What to compare; repeat it. MODEL is a shipped name, hub id or directory; STRATEGY is lace (the "
            "default), independent or swapped. LABEL/1=…, LABEL/2=… are training seeds of one group. Default: the "
            "shipped model, and its twin that was trained on isolated traces.",
        ),
    ] = None,
    threads: Annotated[str, typer.Option(help="Comma-separated numbers of threads.")] = "4,8",
    n: Annotated[int, typer.Option(help="Different puzzles.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the choice of puzzles and of all draws.")] = 7,
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="Part of the puzzles; validation to choose settings.")
    ] = "test",
    max_tokens: Annotated[
        str | None,
        typer.Option(help="Comma-separated budgets of sampled tokens per thread. Default: what the task needs."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of entries that say none. Default: what suits the task.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Of entries that say none: keep the likeliest tokens.")] = TOP_P,
    against: Annotated[
        str | None,
        typer.Option(help="Group that the others are compared with. Default: the first independent one."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report there; an interrupted run goes on from FILE.partial."),
    ] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the report's tables there.")] = None,
) -> None:
    """Measure models on unseen puzzles: accuracy and how it comes about, with 95 % intervals, paired by puzzle."""
    from rich.progress import Progress

    from lace.cli.models import load_engine
    from lace.engine.sampling import SamplingParams
    from lace.eval.report import check_entries, make_report
    from lace.eval.run import Cell
    from lace.eval.run import evaluate as run
    from lace.eval.table import markdown, tables
    from lace.lattice.fingerprint import weights_digest
    from lace.report_table import print_tables
    from lace.tasks.task import get_task

    get_task(task)
    check_writable(json_file, markdown_file)
    counts = positive_numbers(threads, "--threads", MAX_THREADS)
    budgets = [MAX_TOKENS[task]] if max_tokens is None else positive_numbers(max_tokens, "--max-tokens")
    if n < 1:
        raise ValueError(f"--n must be at least 1, not {n}")
    sampling = SamplingParams(temperature=TEMPERATURE[task] if temperature is None else temperature, top_p=top_p)
    entries = [_entry(text, sampling) for text in entry or DEFAULT_ENTRIES]
    baseline = check_entries(entries, against)
    cells = [Cell(e, count, budget) for budget in budgets for count in counts for e in entries]
    engines = {name: load_engine(name) for name in dict.fromkeys(e.model for e in entries)}
    partial = json_file.with_name(json_file.name + ".partial") if json_file else None
    with Progress(disable=not sys.stderr.isatty(), console=_stderr()) as bar:
        lines = {c: bar.add_task(f"{c.entry.label} N={c.threads} T={c.max_tokens}", total=n) for c in cells}
        results = run(
            task,
            cells,
            engines,
            n=n,
            seed=seed,
            split=split,
            partial=partial,
            progress=lambda cell, done: bar.update(lines[cell], completed=done),
        )
    report = make_report(
        results,
        task=task,
        split=split,
        seed=seed,
        against=baseline,
        weights={name: weights_digest(engine.model) for name, engine in engines.items()},
        command=shlex.join(["lace", *sys.argv[1:]]),
    )
    if json_file is not None and partial is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.unlink(missing_ok=True)
    if markdown_file is not None:
        markdown_file.write_text(markdown(report) + "\n", encoding="utf-8")
    print_tables(tables(report), width=200)


def _entry(text: str, sampling: SamplingParams) -> Entry:
    """Reads `LABEL=MODEL[@STRATEGY][,temperature=T][,top_p=P]`.

    Raises:
        ValueError: one line, for anything else.
    """
    from lace.engine.result import STRATEGIES
    from lace.eval.run import Entry

    label, equals, rest = text.partition("=")
    source, *options = rest.split(",")
    model, at, strategy = source.partition("@")
    if not equals or not model:
        raise ValueError(f"--entry must be LABEL=MODEL[@STRATEGY][,temperature=T][,top_p=P], not {text!r}")
    chosen = [known for known in STRATEGIES if known == (strategy if at else "lace")]
    if not chosen:
        raise ValueError(f"unknown strategy {strategy!r} in --entry {text!r}; known are {', '.join(STRATEGIES)}")
    for option in options:
        name, _, value = option.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{option!r} in --entry {text!r} must be NAME=NUMBER") from None
        if name == "temperature":
            sampling = replace(sampling, temperature=number)
        elif name == "top_p":
            sampling = replace(sampling, top_p=number)
        else:
            raise ValueError(f"unknown setting {name!r} in --entry {text!r}; known are temperature, top_p")
    return Entry(label, model, chosen[0], sampling)


def positive_numbers(text: str, option: str, most: int | None = None) -> list[int]:
    """Different whole numbers from 1 on, up to `most` if there is such a bound, in the order given."""
    allowed = "from 1 on" if most is None else f"from 1 to {most}"
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= (most or int(part)):
            raise ValueError(f"{option} takes whole numbers {allowed}, not {part!r}")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)
