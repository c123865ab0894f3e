"""`lace bench`: what the lattice costs, and how fast the engine is."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lace.cli.defaults import SHIPPED_LACE
from lace.cli.evaluate import positive_numbers
from lace.cli.outputs import check_writable
from lace.lattice.config import MAX_THREADS

KINDS = ("operators", "cache", "steps", "throughput")


def bench(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="KIND...", help=f"Of {', '.join(KINDS)}; all if none is named.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"Shipped name, hub id, or directory, also of a GGUF file. Default: {SHIPPED_LACE}."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights instead, e.g. smollm2-135m, qwen3-0.6b, qwen3-1.7b, qwen3-4b.")
    ] = None,
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Default: the checkpoint's.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; operators are always counted on the CPU.")] = "cpu",
    threads: Annotated[str, typer.Option(help="Comma-separated numbers of threads N.")] = "4,32",
    lengths: Annotated[
        str, typer.Option(help="Comma-separated generated lengths at which steps are timed; the first: throughput's.")
    ] = "100",
    context: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 50,
    rounds: Annotated[int, typer.Option(help="Interleaved runs of all sides.", min=1)] = 3,
    static: Annotated[
        bool,
        typer.Option("--static", help="Steps over buffers of fixed shape, which a GPU records and repeats."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Show that it works: few steps, one round.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables there.")] = None,
) -> None:
    """Measure, interleaved and as medians: operators of a step, cache bytes, step time with the lattice on against off,
    and tokens per second against transformers.

    For growth: lace bench steps --threads 1,2,4,8,16,32,64,128 --lengths 128,512,2048,8192 --shape smollm2-135m, and
    then lace plot on the report.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
    if model is not None and shape is not None:
        raise ValueError("give --model or --shape, not both")
    counts = positive_numbers("2" if quick else threads, "--threads", MAX_THREADS)
    steps = positive_numbers("12" if quick else lengths, "--lengths")
    if min(steps) < 2:
        raise ValueError("--lengths takes numbers from 2 on: the first token comes from the prompt's pass")

    check_writable(json_file, markdown_file)
    _check_device(device)

    from rich.console import Console
    from rich.progress import Progress
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    import torch

    from lace.bench.report import (
        about,
        cache_rows,
        markdown,
        operator_rows,
        step_by,
        step_rows,
        tables,
        throughput_rows,
    )
    from lace.bench.subjects import model_engine, shape_engine
    from lace.bench.times import RUNS
    from lace.report_table import print_tables

    chosen = [kind for kind in KINDS if not kinds or kind in kinds]
    as_type = getattr(torch, dtype) if dtype else None
    name, rounds = next(each for each in (shape, model, SHIPPED_LACE) if each is not None), 1 if quick else rounds
    timed = {"steps", "throughput"} & set(chosen)
    # Of a shape the operators are counted on a narrow model, and the cache needs none at all.
    narrow = shape is not None and not timed
    engine = model_engine(name, as_type) if shape is None else shape_engine(shape, as_type, narrow=narrow)
    report = about(name, engine, {"context": context, "rounds": rounds}, shlex.join(["lace", *sys.argv[1:]]))
    with Progress(disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        if "operators" in chosen:
            line = bar.add_task("operators", total=1)
            counted = engine if narrow or not shape else shape_engine(shape, as_type, narrow=True)
            report["operators"] = operator_rows(counted, counts, context)
            bar.advance(line)
        if "cache" in chosen:
            report["cache"] = cache_rows()
        if timed and device != "cpu":
            engine.model.to(device)
            report["device"] = device
        engine.static = static
        if timed:
            report["step_by"] = step_by(engine)
        if "steps" in chosen:
            total = len(counts) * rounds * (max(steps) - 1)
            line = bar.add_task("steps", total=total)
            report["steps"] = step_rows(engine, counts, context, steps, rounds, lambda: bar.advance(line))
        if "throughput" in chosen:
            runs = bar.add_task("throughput", total=len(counts) * (1 + rounds) * RUNS)
            report["throughput"] = throughput_rows(engine, counts, context, steps[0], rounds, lambda: bar.advance(runs))
    for path, text in ((json_file, json.dumps(report, indent=1)), (markdown_file, markdown(report))):
        if path is not None:
            path.write_text(text + "\n", encoding="utf-8")
    print_tables(tables(report), width=160)


def _check_device(device: str) -> None:
    """Says before a model is loaded that it cannot go there.

    Raises:
        ValueError: one line.
    """
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise ValueError(f"--device takes cpu, cuda, or a GPU by its number like cuda:0, not {device!r}")
    if device != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: torch finds {torch.cuda.device_count()} GPUs here")
