"""Which lattices come into the files: kinds that are too frequent are thinned out, rare ones are kept whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lace.data.jsonl import read_records
from lace.data.pipeline.config import DataConfig, LatticesConfig
from lace.data.pipeline.item import Item, Question
from lace.data.pipeline.item import Path as ThreadPath
from lace.data.pipeline.keyed_log import KeyedLog, content_hash
from lace.data.pipeline.outcomes import read_items, write_item
from lace.data.pipeline.outputs import kind_of, write_outputs
from lace.data.record import LatticeRecord, ThreadRecord

PATH = ThreadPath(text="t", answer="1", summary="s", distance=1.0)
COUNTS = {
    (True, True, 20): 300,
    (True, False, 20): 60,
    (True, False, 70): 30,
    (True, False, False, 20): 9,
    (True, True, 9): 1,
}
"""Lattices by which threads are right, and their length."""


def outcomes(path: Path) -> Path:
    log, number = KeyedLog(path), 0
    for (*right, length), count in COUNTS.items():
        for _ in range(count):
            number += 1
            question = Question(id=f"q{number}", text="?", answer="1", verifier="exact", source="test")
            threads = [ThreadRecord(label, ["a"] * length) for label in range(1, len(right) + 1)]
            paths = tuple(PATH.model_copy(update={"right": each}) for each in right)
            item = Item(question=question, paths=paths, lattice=LatticeRecord("?", threads))
            write_item(log, content_hash(number), "", item)
    log.close()
    return path


def written(config: DataConfig, log: Path) -> tuple[Counter[tuple[int, str, int]], int]:
    """The kinds in the files, and how many lattices were left out."""
    kinds = {item.question.id: kind_of(item) for _, item in read_items(log)}
    told = write_outputs(log, config.run.out, config)
    found = Counter[tuple[int, str, int]]()
    for part in ("train", "validation"):
        for record in read_records(config.run.out / part / "lattices.jsonl"):
            found[kinds[record.origin.split('"id": "')[1].split('"')[0]]] += 1
    assert sum(found.values()) == told["train"] + told["validation"]
    return found, told["left out for balance"]


def test_kinds_that_are_too_frequent_are_thinned_out(make_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    log = outcomes(tmp_path / "outcomes.jsonl")
    default = LatticesConfig().balance
    config = make_config("http://127.0.0.1:1", lattices={"balance": default})
    found, left_out = written(config, log)
    assert default == 2.0
    assert 140 < found[(2, "all", 5)] < 180, "400 lattices of 5 kinds: twice 80 of each at most, by draws"
    assert [found[kind] for kind in ((2, "most", 5), (2, "most", 7), (3, "few", 5), (2, "all", 4))] == [60, 30, 9, 1]
    assert sum(found.values()) + left_out == 400
    assert written(config, log) == (found, left_out), "the draws are of the questions"


def test_no_balance_keeps_all(make_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    log = outcomes(tmp_path / "outcomes.jsonl")
    found, left_out = written(make_config("http://127.0.0.1:1", lattices={"balance": 0}), log)
    assert (sum(found.values()), left_out) == (400, 0)
