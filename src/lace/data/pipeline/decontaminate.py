"""Overlap of questions with benchmarks, by word 8-grams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lace.data.pipeline.config import Benchmark
from lace.data.pipeline.duplicates import UNSPACED
from lace.data.pipeline.keyed_log import content_hash
from lace.data.pipeline.sources import read_rows

LENGTH = 8
"""Words of an n-gram; a shorter question is one n-gram."""
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


@dataclass(frozen=True)
class Overlap:
    """The benchmark question that a question overlaps with most."""

    benchmark: str
    row: int
    """Of the benchmark's file, from 1 on."""
    share: float
    """Of the question's n-grams that stand in the benchmark."""


class Contamination:
    """Knows the n-grams of some benchmarks, in 16 bytes each.

    Raises:
        ValueError: one line, for a benchmark that cannot be read.
    """

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.benchmarks = benchmarks
        self.rows: dict[str, int] = {}
        hashes: list[int] = []
        places: list[int] = []
        for number, benchmark in enumerate(benchmarks):
            for row, values in enumerate(read_rows(benchmark.path), start=1):
                if benchmark.question not in values:
                    raise ValueError(f"{benchmark.path} has no column {benchmark.question!r}")
                found = _ngrams(str(values[benchmark.question]))
                hashes += found
                places += [number << 40 | row] * len(found)
                self.rows[benchmark.name] = row
        order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
        self._hashes = np.array(hashes, dtype=np.uint64)[order]
        self._places = np.array(places, dtype=np.int64)[order]

    def overlap(self, text: str) -> Overlap | None:
        """How far a question stands in the benchmarks; None if no n-gram of it does."""
        ngrams = _ngrams(text)
        if not ngrams or not len(self._hashes):
            return None
        wanted = np.array(ngrams, dtype=np.uint64)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        hits = places[self._hashes[places] == wanted]
        if not len(hits):
            return None
        entries, counts = np.unique(self._places[hits], return_counts=True)
        most = int(entries[counts.argmax()])
        return Overlap(self.benchmarks[most >> 40].name, most & (2**40 - 1), len(hits) / len(ngrams))


def _ngrams(text: str) -> list[int]:
    words = _WORD.findall(text.casefold())
    found = {" ".join(words[n : n + LENGTH]) for n in range(max(1, len(words) - LENGTH + 1))} - {""}
    return [int(content_hash(ngram)[:16], 16) for ngram in found]
