"""Runs models and strategies on the same puzzles at equal token budgets, and goes on after an interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lace.engine.engine import Engine
from lace.engine.result import Strategy
from lace.engine.sampling import SamplingParams
from lace.eval.outcome import Outcome, judge
from lace.lattice.fingerprint import weights_digest
from lace.tasks.task import Split, get_task


@dataclass(frozen=True)
class Entry:
    """What is compared: a model, and how it is decoded.

    Raises:
        ValueError: one line, for a label that is none.
    """

    label: str
    """`GROUP`, or `GROUP/SEED` for one of several models that differ in their training seed alone."""
    model: str
    strategy: Strategy
    sampling: SamplingParams
    """Temperature and truncation; threads, budget and seed are set for each row and puzzle."""

    def __post_init__(self) -> None:
        group, slash, seed = self.label.partition("/")
        if not group or (slash and not seed.isdecimal()):
            raise ValueError(f"an entry's label must be NAME or NAME/SEED, not {self.label!r}")

    @property
    def group(self) -> str:
        return self.label.partition("/")[0]

    @property
    def seed(self) -> int | None:
        """Of training, if the label says it."""
        seed = self.label.partition("/")[2]
        return int(seed) if seed else None


@dataclass(frozen=True)
class Cell:
    """One row of the report: an entry with a number of threads and a budget of sampled tokens per thread."""

    entry: Entry
    threads: int
    max_tokens: int


def evaluate(
    task: str,
    cells: Sequence[Cell],
    engines: Mapping[str, Engine],
    *,
    n: int,
    seed: int,
    split: Split = "test",
    partial: Path | None = None,
    progress: Callable[[Cell, int], None] = lambda cell, done: None,
) -> dict[Cell, list[Outcome]]:
    """Runs all cells on the same `n` puzzles; every cell meets a puzzle with the same seed of its draws.

    Args:
        task: name of a task.
        cells: what to run.
        engines: by the model names of the cells' entries.
        n: different puzzles.
        seed: of the choice of puzzles and of all draws.
        split: part of the data that the puzzles are from.
        partial: file of finished chunks of puzzles; what it holds of the very same run is not done again.
        progress: called with the puzzles done so far of a cell.

    Raises:
        ValueError: for an unknown task, or if the split has fewer than `n` puzzles.
    """
    playing = get_task(task)
    puzzles = playing.puzzles(n, seed, split)
    finished = dict(_read_partial(partial))
    results: dict[Cell, list[Outcome]] = {}
    for cell in cells:
        engine, entry = engines[cell.entry.model], cell.entry
        sampling = replace(entry.sampling, threads=cell.threads, max_tokens=cell.max_tokens)
        key = {
            "task": task,
            "split": split,
            "run_seed": seed,
            "model": entry.model,
            "weights": weights_digest(engine.model),
            "strategy": entry.strategy,
            "sampling": asdict(sampling),
        }
        results[cell] = []
        for chunk in _chunks(n, cell.threads, engine.max_rows):
            # A chunk is one record and is done whole or not at all: with the strategy `swapped` its puzzles depend on
            # one another.
            name = json.dumps({**key, "puzzles": [chunk[0], chunk[-1]]}, sort_keys=True)
            if name not in finished:
                params = [replace(sampling, seed=seed_of_draws(seed, i)) for i in chunk]
                began = time.perf_counter()
                found = engine.generate([puzzles[i].prompt for i in chunk], params, strategy=entry.strategy)
                seconds = (time.perf_counter() - began) / len(chunk)
                finished[name] = [judge(playing, puzzles[i], x, seconds) for i, x in zip(chunk, found, strict=True)]
                _append_partial(partial, name, finished[name])
            results[cell] += finished[name]
            progress(cell, len(results[cell]))
    return results


def seed_of_draws(run_seed: int, number: int) -> int:
    """The seed with which puzzle or question `number` of a run is answered.

    Raises:
        ValueError: one line, if the seed of the run leaves none that draws can have.
    """
    apart, most = 1_000_003, 2**63
    if not 0 <= run_seed < most // apart:
        raise ValueError(f"the seed of a run must be between 0 and {most // apart - 1}, not {run_seed}")
    return run_seed * apart + number


def _chunks(n: int, threads: int, max_rows: int) -> list[list[int]]:
    """Puzzles 0..n-1 in about equal chunks of at most `max_rows` threads, so each is a batch, but of two puzzles at
    least where there are so many: a puzzle alone has no other one to swap its lattice with."""
    count = max(1, min(math.ceil(n * threads / max_rows), n // 2))
    return [chunk.tolist() for chunk in np.array_split(np.arange(n), count)]


def _read_partial(path: Path | None) -> Iterator[tuple[str, list[Outcome]]]:
    if path is None or not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue  # an empty line, or the one that was being written when the run was killed
        yield record["chunk"], [Outcome(**outcome) for outcome in record["outcomes"]]


def _append_partial(path: Path | None, chunk: str, outcomes: Sequence[Outcome]) -> None:
    if path is None:
        return
    with path.open("a", encoding="utf-8") as file:  # on a new line, whatever a killed run has left of its last one
        file.write("\n" + json.dumps({"chunk": chunk, "outcomes": [asdict(outcome) for outcome in outcomes]}))
