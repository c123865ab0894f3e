"""Runs: the same puzzles for all, all strategies, the same when interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.result import STRATEGIES
from lace.engine.sampling import SamplingParams
from lace.eval.outcome import Outcome
from lace.eval.run import Cell, Entry, evaluate
from lace.lattice.fingerprint import weights_digest

SAMPLING = SamplingParams()
CELLS = [
    Cell(Entry("lace", "puzzles", "lace", SAMPLING), 2, 20),
    Cell(Entry("isolated", "puzzles-isolated", "independent", SAMPLING), 2, 20),
    Cell(Entry("swapped", "puzzles", "swapped", SAMPLING), 2, 20),
]
SETTINGS: dict[str, Any] = {"n": 7, "seed": 3}


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {name: load_engine(name) for name in ("puzzles", "puzzles-isolated")}


def untimed(results: dict[Cell, list[Outcome]]) -> dict[Cell, list[Outcome]]:
    return {cell: [replace(outcome, seconds=0) for outcome in outcomes] for cell, outcomes in results.items()}


def test_interrupted_evaluation_goes_on_where_it_stopped(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in engines.values():
        monkeypatch.setattr(engine, "max_rows", 6)  # chunks of 3, 2 and 2 puzzles
    assert {cell.entry.strategy for cell in CELLS} == set(STRATEGIES)
    whole = evaluate("countdown", CELLS, engines, **SETTINGS)
    partial = tmp_path / "report.json.partial"
    seen: list[tuple[str, int]] = []

    def stop(cell: Cell, done: int) -> None:
        seen.append((cell.entry.label, done))
        if len(seen) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("countdown", CELLS, engines, **SETTINGS, partial=partial, progress=stop)
    assert seen[3:] == [("isolated", 3), ("isolated", 5), ("isolated", 7), ("swapped", 3), ("swapped", 5)]
    partial.write_text(partial.read_text()[:-30])  # killed while writing the last chunk
    generated: list[int] = []
    generate = Engine.generate

    def count(self: Engine, prompts: list[str], *args: Any, **kwargs: Any) -> Any:
        generated.append(len(prompts))
        return generate(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Engine, "generate", count)
    resumed = evaluate("countdown", CELLS, engines, **SETTINGS, partial=partial)
    assert generated == [2, 2]
    assert untimed(resumed) == untimed(whole)
    again = evaluate("countdown", CELLS, engines, **SETTINGS, partial=partial)
    assert generated == [2, 2]
    assert again == resumed


def test_another_run_takes_nothing_from_the_partial_file(engines: dict[str, Engine], tmp_path: Path) -> None:
    partial = tmp_path / "report.json.partial"
    evaluate("countdown", CELLS[:1], engines, **SETTINGS, partial=partial)
    entry = CELLS[0].entry
    for cell, settings in [
        (Cell(entry, 2, 20), {"n": 7, "seed": 4}),
        (Cell(entry, 2, 20), {"n": 7, "seed": 3, "split": "validation"}),
        (Cell(entry, 2, 21), SETTINGS),
        (Cell(replace(entry, sampling=SamplingParams(temperature=0.5)), 2, 20), SETTINGS),
        (Cell(replace(entry, strategy="independent"), 2, 20), SETTINGS),
    ]:
        lines = len(partial.read_text().splitlines())
        evaluate("countdown", [cell], engines, **settings, partial=partial)
        assert len(partial.read_text().splitlines()) > lines


def test_the_lattice_makes_the_difference_between_strategies(engines: dict[str, Engine]) -> None:
    entry = CELLS[0].entry
    cells = [Cell(replace(entry, strategy=strategy), 4, 100) for strategy in STRATEGIES]
    results = untimed(evaluate("countdown", cells, engines, n=16, seed=1))
    assert results[cells[0]] != results[cells[1]]
    assert results[cells[0]] != results[cells[2]]


def test_digest_sees_the_weights(engines: dict[str, Engine]) -> None:
    assert weights_digest(engines["puzzles"].model) == weights_digest(load_engine("puzzles").model)
    assert weights_digest(engines["puzzles"].model) != weights_digest(engines["puzzles-isolated"].model)


def test_wrong_arguments_are_refused(engines: dict[str, Engine]) -> None:
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        evaluate("chess", CELLS, engines, **SETTINGS)
    for label in ("", "/1", "lace/", "lace/one", "lace/1/2"):
        with pytest.raises(ValueError, match="NAME or NAME/SEED"):
            Entry(label, "puzzles", "lace", SAMPLING)
    entry = Entry("lace/12", "puzzles", "lace", SAMPLING)
    assert (entry.group, entry.seed) == ("lace", 12)
