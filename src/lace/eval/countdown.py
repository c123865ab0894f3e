"""Countdown on unseen puzzles: strategies and numbers of threads side by side, paired by puzzle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lace.engine.engine import Engine
from lace.engine.result import LatticeResult, Strategy
from lace.engine.sampling import SamplingParams
from lace.engine.selection import majority
from lace.eval.stats import Estimate, bootstrap_mean, wilson
from lace.tasks.countdown import Puzzle, puzzles, read_trace

PROPORTIONS = ("acc", "vote@N", "pass@N", "tag_valid")
"""Metrics with one yes or no per puzzle; `mean@N` is a share of a puzzle's threads."""
CHUNK_ROWS = 512
"""Threads decoded between two marks of progress."""


@dataclass(frozen=True)
class Outcome:
    """What one lattice did on one puzzle."""

    acc: float
    """The chosen thread's answer is right."""
    mean: float
    """Share of threads with a right answer."""
    vote: float
    """The most frequent answer is right."""
    passed: float
    """Some thread's answer is right: the oracle's choice."""
    tag_valid: float
    """Exactly one thread claims `[[best]]`."""
    tokens: int
    steps: int
    false_steps: int
    attempts: int
    distinct_attempts: int
    seconds: float
    """Wall-clock time of its batch, divided by the puzzles in it."""


_METRIC_FIELDS = {"acc": "acc", "mean@N": "mean", "vote@N": "vote", "pass@N": "passed", "tag_valid": "tag_valid"}


def judge(puzzle: Puzzle, result: LatticeResult, seconds: float) -> Outcome:
    """Checks every thread's answer and every written step."""
    answers = [thread.answer for thread in result.threads]
    right = [puzzle.check(answer) for answer in answers]
    reports = [read_trace(puzzle, thread.text) for thread in result.threads]
    tried = [attempt for report in reports for attempt in report.attempts]
    return Outcome(
        acc=float(right[result.chosen]),
        mean=sum(right) / len(right),
        vote=float(puzzle.check(majority(answers))),
        passed=float(any(right)),
        tag_valid=float(sum(thread.tag == "best" for thread in result.threads) == 1),
        tokens=result.completion_tokens,
        steps=sum(report.steps for report in reports),
        false_steps=sum(report.false_steps + report.illegal_steps for report in reports),
        attempts=len(tried),
        distinct_attempts=len(set(tried)),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Cell:
    """One row of the table: a model, a strategy and a number of threads."""

    model: str
    strategy: Strategy
    threads: int


def evaluate(
    engines: Mapping[str, Engine],
    cells: Sequence[Cell],
    *,
    n: int,
    seed: int,
    numbers: int,
    sampling: SamplingParams,
    partial: Path | None = None,
    progress: Callable[[Cell, int], None] = lambda cell, done: None,
) -> dict[Cell, list[Outcome]]:
    """Runs all cells on the same `n` test puzzles with the same budget of sampled tokens per thread.

    Args:
        engines: by model name.
        cells: what to compare.
        n: different puzzles of the test split.
        seed: of the choice of puzzles and of all draws.
        numbers: how many numbers a puzzle has, 3 or 4.
        sampling: budget and distribution of all cells; threads and seeds are set for each puzzle.
        partial: file of finished puzzles; what it holds of the very same run is not done again.
        progress: called with the puzzles done so far of a cell.

    Raises:
        ValueError: if the test split has fewer than `n` puzzles.
    """
    tested = puzzles(n, seed, "test", numbers)
    settings = {"run_seed": seed, "numbers": numbers, "sampling": asdict(replace(sampling, threads=1, seed=0))}
    settings = json.loads(json.dumps(settings))  # as it will be read back: tuples become lists
    results: dict[Cell, list[Outcome]] = {}
    for cell in cells:
        key = {**settings, **asdict(cell), "weights": _weights_digest(engines[cell.model])}
        done = dict(_read_partial(partial, key))
        chunk = max(1, CHUNK_ROWS // cell.threads)
        for start in range(0, n, chunk):
            wanted = [i for i in range(start, min(n, start + chunk)) if i not in done]
            # Every puzzle has a seed of its own, so that puzzles are independent of one another.
            params = [replace(sampling, threads=cell.threads, seed=seed * 1_000_003 + i) for i in wanted]
            if wanted:
                prompts = [tested[i].prompt for i in wanted]
                began = time.perf_counter()
                found = engines[cell.model].generate(prompts, params, strategy=cell.strategy)
                seconds = (time.perf_counter() - began) / len(wanted)
                new = {i: judge(tested[i], result, seconds) for i, result in zip(wanted, found, strict=True)}
                _append_partial(partial, key, new)
                done |= new
            progress(cell, min(n, start + chunk))
        results[cell] = [done[i] for i in range(n)]
    return results


def _weights_digest(engine: Engine) -> str:
    """Tells models of the same name apart, lattice included."""
    digest = hashlib.sha256()
    for name, tensor in engine.model.state_dict().items():
        digest.update(name.encode() + str(tensor.flatten()[:64].float().tolist()).encode())
    return digest.hexdigest()[:16]


def _read_partial(path: Path | None, key: dict[str, Any]) -> Iterator[tuple[int, Outcome]]:
    if path is None or not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was killed
        if record["key"] == key:
            yield record["puzzle"], Outcome(**record["outcome"])


def _append_partial(path: Path | None, key: dict[str, Any], outcomes: Mapping[int, Outcome]) -> None:
    if path is None:
        return
    with path.open("a", encoding="utf-8") as file:
        for i, outcome in outcomes.items():
            file.write(json.dumps({"key": key, "puzzle": i, "outcome": asdict(outcome)}) + "\n")


def summarise(
    results: Mapping[Cell, Sequence[Outcome]], *, seed: int, numbers: int, sampling: SamplingParams, command: str
) -> dict[str, Any]:
    """The report of an evaluation: metrics with 95 % intervals, and differences between strategies."""
    n = len(next(iter(results.values())))
    rows = []
    for cell, outcomes in results.items():
        metrics = {name: _estimate(name, _values(name, outcomes)).to_dict() for name in _METRIC_FIELDS}
        total = {field: sum(getattr(o, field) for o in outcomes) for field in _TOTALS}
        rows.append(
            {
                **asdict(cell),
                "max_tokens": sampling.max_tokens,
                "metrics": metrics,
                "tokens": total["tokens"] / n,
                "seconds": total["seconds"] / n,
                "false_steps": total["false_steps"] / max(1, total["steps"]),
                "distinct_attempts": total["distinct_attempts"] / max(1, total["attempts"]),
            }
        )
    return {
        "task": "countdown",
        "n": n,
        "seed": seed,
        "numbers": numbers,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "command": command,
        "commit": _commit(),
        "rows": rows,
        "paired": list(_paired(results)),
    }


_TOTALS = ("tokens", "steps", "false_steps", "attempts", "distinct_attempts", "seconds")


def _values(name: str, outcomes: Sequence[Outcome]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([getattr(outcome, _METRIC_FIELDS[name]) for outcome in outcomes])


def _estimate(name: str, values: np.ndarray[Any, np.dtype[np.float64]]) -> Estimate:
    return wilson(int(values.sum()), len(values)) if name in PROPORTIONS else bootstrap_mean(values)


def _paired(results: Mapping[Cell, Sequence[Outcome]]) -> Iterator[dict[str, Any]]:
    """Differences LACE - independent at equal threads, puzzle by puzzle; the last compares LACE's own choice with the
    oracle's choice among independent threads."""
    for a, b in ((a, b) for a in results for b in results):
        if (a.strategy, b.strategy) != ("lace", "independent") or a.threads != b.threads:
            continue
        for left, right in [(name, name) for name in ("acc", "mean@N", "vote@N", "pass@N")] + [("acc", "pass@N")]:
            difference = bootstrap_mean(_values(left, results[a]) - _values(right, results[b]))
            yield {
                "threads": a.threads,
                "a": {"model": a.model, "strategy": a.strategy, "metric": left},
                "b": {"model": b.model, "strategy": b.strategy, "metric": right},
                "difference": difference.to_dict(),
            }


def _commit() -> str | None:
    """The commit of a source checkout, marked if this package was changed since; None elsewhere."""
    here = Path(__file__).parents[1]
    try:
        tracked, head, changed = (
            subprocess.run(
                ["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10
            ).stdout.strip()
            for command in (["ls-files", __file__], ["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if tracked and changed else head if tracked else None
