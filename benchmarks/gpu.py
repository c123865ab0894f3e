"""Decoding on a GPU, step by step recorded or not, with the lattice on and off, and against transformers' generate.

    python benchmarks/gpu.py SUBJECT FILE.json [steps] [generate] [compiled] [growth]

SUBJECT is a shape of `lace bench --shape` or a shipped model, in bfloat16. FILE holds a list of reports as `lace bench`
writes them, one for each part, written as soon as it is measured. `benchmarks/gpu.sh` runs all in a few minutes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lace.bench.report import about, step_rows, throughput_rows
from lace.bench.subjects import SHAPES, model_engine, shape_engine
from lace.bench.times import TRANSFORMERS
from lace.engine.engine import Engine
from lace.lattice.graft import lattice_layers

THREADS, CONTEXT, TOKENS = [4, 32, 128], 50, 100
DYNAMIC = tuple(name for name in TRANSFORMERS if name.startswith("dynamic"))
COMPILED = tuple(name for name in TRANSFORMERS if name.startswith("static"))
"""Of itself `generate` compiles its step for a static cache, on a GPU."""


def steps(engine: Engine, *, static: bool, lean: bool, rounds: int) -> dict[str, Any]:
    engine.static, engine.lean = static, lean
    return {"steps": step_rows(engine, THREADS, CONTEXT, [TOKENS], rounds, lambda: None)}


def growth(engine: Engine, threads: Sequence[int], lengths: Sequence[int], *, horizon: int) -> dict[str, Any]:
    engine.static, engine.lean = True, True
    for lattice in lattice_layers(engine.model):
        lattice.config = replace(lattice.config, horizon=horizon)
    return {"steps": step_rows(engine, list(threads), CONTEXT, list(lengths), 1, lambda: None)}


def tokens_per_second(engine: Engine, threads: Sequence[int], settings: Sequence[str]) -> dict[str, Any]:
    engine.static, engine.lean = True, True
    return {"throughput": throughput_rows(engine, list(threads), CONTEXT, TOKENS, 1, lambda: None, settings)}


def main() -> None:
    subject, file, parts = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    engine = shape_engine(subject, torch.bfloat16) if subject in SHAPES else model_engine(subject, torch.bfloat16)
    engine.model.to("cuda")
    reports: list[dict[str, Any]] = []

    def report(kind: str, found: dict[str, Any]) -> None:
        origin = about(subject, engine, {"context": CONTEXT, "steps are": kind}, " ".join(sys.argv))
        reports.append({**origin, **found})
        file.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        print(f"{time.strftime('%T')} {subject} {kind} {json.dumps(found)}", flush=True)

    if "steps" in parts:
        report("recorded, lean", steps(engine, static=True, lean=True, rounds=2))
        report("recorded, whole model", steps(engine, static=True, lean=False, rounds=2))
        report("not recorded, whole model", steps(engine, static=False, lean=False, rounds=1))
    if "generate" in parts:
        report("recorded, lean", tokens_per_second(engine, (8, 32), DYNAMIC[:1]))
    if "compiled" in parts:
        report("recorded, lean", tokens_per_second(engine, (32,), COMPILED))
    if "growth" in parts:
        report("recorded, lean", growth(engine, (4, 32, 128), (128, 512, 1024), horizon=0))
        report("recorded, lean, horizon 64", growth(engine, (128,), (128, 512, 1024), horizon=64))
    print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
