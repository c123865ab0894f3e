"""Step time of the engine with the lattice on against off: same model, same engine, interleaved, medians.

    python benchmarks/step_time.py [--model puzzles] [--threads 4,8,32] [--tokens 100] [--rounds 9] [--json FILE]

Tokens are forced to last (no end token), so that both sides do the same number of steps with the same rows. Each round
measures both sides, in alternating order; the first rounds are warm-up.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.result import Strategy
from lace.engine.sampling import SamplingParams

PROMPT = "Use 9, 14 and 6 to make 30"
WARM_UP = 2


def step_milliseconds(engine: Engine, threads: int, tokens: int, strategy: Strategy) -> float:
    """Milliseconds per decoding step of one lattice, prefill included (one of its ~100 passes)."""
    params = SamplingParams(threads=threads, max_tokens=tokens, grace=None)
    start = time.perf_counter()
    result = engine.generate(PROMPT, params, strategy=strategy)[0]
    return 1000 * (time.perf_counter() - start) / result.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="puzzles")
    parser.add_argument("--threads", default="4,8,32")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = load_engine(options.model)
    engine.end_ids = frozenset()
    rows = []
    for threads in map(int, options.threads.split(",")):
        times: dict[Strategy, list[float]] = {"lace": [], "independent": []}
        for round_number in range(WARM_UP + options.rounds):
            order: list[Strategy] = ["lace", "independent"] if round_number % 2 else ["independent", "lace"]
            for strategy in order:
                milliseconds = step_milliseconds(engine, threads, options.tokens, strategy)
                if round_number >= WARM_UP:
                    times[strategy].append(milliseconds)
        on, off = (statistics.median(times[s]) for s in ("lace", "independent"))
        ratios = [a / b for a, b in zip(times["lace"], times["independent"], strict=True)]
        rows.append({"threads": threads, "on_ms": on, "off_ms": off, "ratio": statistics.median(ratios)})
        print(f"N={threads:3d}  on {on:7.2f} ms  off {off:7.2f} ms  ratio {rows[-1]['ratio']:.3f}", flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "device": str(engine.model.device),
        "dtype": str(engine.model.dtype),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"model": options.model, "tokens": options.tokens, "rounds": options.rounds, **machine, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
