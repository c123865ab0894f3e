"""The files that training reads: lattices of the last stage, balanced, and split by question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.item import Item
from lace.data.pipeline.keyed_log import content_hash
from lace.data.pipeline.outcomes import read_items
from lace.data.record import LatticeRecord

FILE_NAME = "lattices.jsonl"
PARTS = ("train", "validation")


def kind_of(item: Item) -> tuple[int, str, int]:
    """What lattices are balanced by: threads, share of right ones, and length as a power of two."""
    assert item.lattice is not None
    right = sum(bool(path.right) for path in item.paths) / len(item.paths)
    share = "all" if right == 1 else "most" if right >= 0.5 else "few"
    longest = max(len(thread.tokens) for thread in item.lattice.threads)
    return len(item.paths), share, longest.bit_length()


def part_of(item: Item, config: DataConfig) -> str:
    """`train` or `validation`, by the question alone: more data does not move a question to the other side."""
    validation = _point(config.run.seed, "validation", item) < config.lattices.validation
    return "validation" if validation else "train"


def write_outputs(outcomes: Path, out: Path, config: DataConfig) -> dict[str, int]:
    """Writes `train/lattices.jsonl` and `validation/lattices.jsonl` anew.

    Returns:
        Lattices in each part, and how many were left out for balance.
    """
    chances: dict[tuple[int, str, int], float] = {}
    if config.lattices.balance:
        counts = Counter(kind_of(item) for _, item in read_items(outcomes))
        if counts:
            most = config.lattices.balance * fmean(counts.values())
            chances = {kind: most / count for kind, count in counts.items()}
    written = dict.fromkeys((*PARTS, "left out for balance"), 0)
    unfinished = {part: out / part / f"{FILE_NAME}.unfinished" for part in PARTS}
    for path in unfinished.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    files = {part: path.open("w", encoding="utf-8") for part, path in unfinished.items()}
    for _, item in read_items(outcomes):
        if _point(config.run.seed, "balance", item) >= chances.get(kind_of(item), 1.0):
            written["left out for balance"] += 1
            continue
        part = part_of(item, config)
        files[part].write(json.dumps(asdict(to_record(item)), ensure_ascii=False) + "\n")
        written[part] += 1
    for part, file in files.items():
        file.close()
        unfinished[part].replace(out / part / FILE_NAME)
    return written


def to_record(item: Item) -> LatticeRecord:
    """The lattice with where it comes from."""
    assert item.lattice is not None
    origin = {
        "id": item.question.id,
        "source": item.question.source,
        "question": item.question.text,
        "answer": item.question.answer,
        "pass_rate": item.pass_rate,
        "right": [path.right for path in item.paths],
        "history": [mark.model_dump(mode="json") for mark in item.history],
    }
    return LatticeRecord(item.lattice.prompt, item.lattice.threads, json.dumps(origin, ensure_ascii=False))


def read_outputs(out: Path, part: str) -> Iterator[str]:
    """The lines of a part."""
    with (out / part / FILE_NAME).open(encoding="utf-8") as file:
        yield from file


def _point(seed: int, purpose: str, item: Item) -> float:
    """A number in [0, 1) that depends on seed, purpose and question alone."""
    return int(content_hash(seed, purpose, item.question.id)[:8], 16) / 2**32
