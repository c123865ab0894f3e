"""`lace observe`: what threads do with each other, over many puzzles."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lace.cli.defaults import MAX_TOKENS, SHIPPED_LACE, TEMPERATURE, TOP_P
from lace.cli.models import independent_model
from lace.cli.outputs import check_writable

if TYPE_CHECKING:
    from lace.engine.engine import Engine
    from lace.engine.sampling import SamplingParams
    from lace.eval.run import Entry
    from lace.viz.trace import Trace

CHUNK = 16
"""Puzzles decoded between two marks of progress."""


def observe(
    model: Annotated[str, typer.Argument(help="Shipped name, hub id or directory.")] = SHIPPED_LACE,
    task: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(MAX_TOKENS)}; repeat it. Default: all.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads that work side by side.", min=2)] = 8,
    n: Annotated[int, typer.Option(help="Different puzzles of each task.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Of the choice of puzzles and of all draws.")] = 7,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Part of the puzzles.")] = "validation",
    silence: Annotated[
        bool,
        typer.Option("--silence", help="Also answer the puzzles with each layer and head silenced; takes a while."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write the report there, for `lace plot`; what is silenced goes on from FILE.partial."
        ),
    ] = None,
) -> None:
    """Record threads on many unseen puzzles: when, in which layers and heads, and what they read of each other.

    `lace plot FILE.json` draws the report: gates, attention to other threads over the life of a thread and around the
    moments that matter, diversity beside that of independent threads, and what each head reads and is needed for.
    """
    from rich.console import Console
    from rich.progress import Progress

    from lace.cli.models import load_engine
    from lace.engine.sampling import SamplingParams
    from lace.eval.run import Entry
    from lace.lattice.fingerprint import weights_digest
    from lace.lattice.graft import numbered_lattices
    from lace.provenance import machine, source_commit
    from lace.report_table import print_tables
    from lace.tasks.task import get_task
    from lace.viz.exchange import diversity_over_time, pool
    from lace.viz.exchange_table import tables

    tasks = list(dict.fromkeys(task or MAX_TOKENS))
    for name in tasks:
        get_task(name)
    check_writable(json_file)
    engine, twin = load_engine(model), load_engine(independent_model(model))
    lattices = numbered_lattices(engine.model)
    if not lattices:
        raise ValueError(f"{model} has no lattice attention; its threads do not read each other")
    kept = json_file.with_name(json_file.name + ".partial") if json_file else None
    found: dict[str, Any] = {}
    with Progress(disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        for name in tasks:
            params = SamplingParams(
                threads=threads, max_tokens=MAX_TOKENS[name], temperature=TEMPERATURE[name], top_p=TOP_P
            )
            line = bar.add_task(f"{name}: recording", total=2 * n)
            advance = partial(bar.advance, line)
            traces = _traces(engine, name, params, n, seed, split, "lace", advance)
            alone = _traces(twin, name, params, n, seed, split, "independent", advance)
            found[name] = {
                "sampling": {"temperature": params.temperature, "top_p": TOP_P, "max_tokens": params.max_tokens},
                **pool(traces),
                "independent": {"model": independent_model(model), "diversity": diversity_over_time(alone)},
            }
            if silence:
                rows = 1 + sum(1 + module.config.num_heads for module in lattices.values())
                line = bar.add_task(f"{name}: silenced", total=rows * n)
                entry, advance = Entry("lace", model, "lace", params), partial(bar.advance, line)
                found[name]["silenced"] = _silenced(engine, name, entry, n, seed, split, kept, advance)
    report = {
        "observed": model,
        "split": split,
        "seed": seed,
        "tasks": found,
        "weights": weights_digest(engine.model),
        "command": shlex.join(["lace", *sys.argv[1:]]),
        "commit": source_commit(),
        "machine": machine(),
    }
    if json_file is not None and kept is not None:
        json_file.write_text(json.dumps(report) + "\n", encoding="utf-8")
        kept.unlink(missing_ok=True)
    print_tables(tables(report), width=160)


def _traces(
    engine: Engine,
    task: str,
    params: SamplingParams,
    n: int,
    seed: int,
    split: Literal["test", "validation"],
    strategy: Literal["lace", "independent"],
    advance: Callable[[float], object],
) -> list[Trace]:
    """Recordings of the first `n` puzzles; the same seeds as in `lace eval`."""
    from lace.eval.run import seed_of_draws
    from lace.tasks.task import get_task
    from lace.viz.trace import record

    puzzles, traces = get_task(task).puzzles(n, seed, split), []
    for first in range(0, n, CHUNK):
        chunk = range(first, min(first + CHUNK, n))
        prompts = [puzzles[i].prompt for i in chunk]
        each = [replace(params, seed=seed_of_draws(seed, i)) for i in chunk]
        for result in engine.generate(prompts, each, strategy=strategy):
            traces.append(record(engine, result))
        advance(len(chunk))
    return traces


def _silenced(
    engine: Engine,
    task: str,
    entry: Entry,
    n: int,
    seed: int,
    split: Literal["test", "validation"],
    kept: Path | None,
    advance: Callable[[float], object],
) -> list[dict[str, Any]]:
    """What the threads reach with all heads, and with each layer and head silenced; the same puzzles and draws."""
    from contextlib import nullcontext

    from lace.eval.run import Cell, evaluate
    from lace.eval.stats import bootstrap_mean
    from lace.lattice.graft import numbered_lattices
    from lace.viz.silence import silenced

    lattices = numbered_lattices(engine.model)
    count = next(iter(lattices.values())).config.num_heads
    parts: list[tuple[int | None, int | None]] = [(None, None), *((layer, None) for layer in lattices)]
    parts += [(layer, head) for layer in lattices for head in range(count)]
    rows, whole = [], None
    for layer, head in parts:
        # What is silent is part of the name: what is kept of an interrupted run is told apart by it.
        model = entry.model if layer is None else f"{entry.model} without layer {layer}, head {head}"
        cell = Cell(replace(entry, model=model), entry.sampling.threads, entry.sampling.max_tokens)
        heads = range(count) if head is None else [head]
        with nullcontext() if layer is None else silenced(lattices[layer], heads):
            done = evaluate(task, [cell], {model: engine}, n=n, seed=seed, split=split, partial=kept)
        outcomes = done[cell]
        advance(n)
        whole = whole or outcomes
        rows.append(
            {
                "layer": layer,
                "head": head,
                **{
                    name: bootstrap_mean([getattr(o, name) for o in outcomes]).to_dict()
                    for name in ("acc", "mean", "tag_valid", "diversity")
                },
                "lost": bootstrap_mean([b.acc - o.acc for b, o in zip(whole, outcomes, strict=True)]).to_dict(),
                "lost_mean": bootstrap_mean([b.mean - o.mean for b, o in zip(whole, outcomes, strict=True)]).to_dict(),
                "false_steps": sum(o.false_equations for o in outcomes) / max(1, sum(o.equations for o in outcomes)),
                "distinct_attempts": _ratio(
                    sum(o.distinct_attempts for o in outcomes), sum(o.attempts for o in outcomes)
                ),
            }
        )
    return rows


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
