"""Overlap of questions with benchmarks: by word 8-grams, and by benchmark questions that stand in them whole."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lace.data.pipeline.config import Benchmark
from lace.data.pipeline.duplicates import UNSPACED
from lace.data.pipeline.sources import read_rows

Indices = NDArray[np.int64]
LENGTH = 8
"""Words of an n-gram; a shorter question is one n-gram."""
SHORTEST = 5.0
"""Words of a benchmark's question from which on it is looked for within others: fewer are a turn of speech."""
UNSPACED_WEIGHT = 0.84
"""What a Chinese or Japanese character counts of a word there: six are enough."""
PHRASE = 3
"""Other questions of the benchmarks that one stands in whole, from which on it is taken for a phrase."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_WORD_OR_SIGN = re.compile(rf"{_WORD.pattern}|[-+*/=<>^\u00d7\u00f7\u2212]")
"""With signs that make another question of the same numbers."""


@dataclass(frozen=True)
class Overlap:
    """The benchmark question that a question overlaps with most."""

    benchmark: str
    row: int
    """Of the benchmark's file, from 1 on."""
    share: float
    """Of the question's n-grams that stand in the benchmark; 1 where a benchmark's question stands in it whole."""


class Contamination:
    """Knows the n-grams of some benchmarks, in 16 bytes each, and the words of their short questions.

    Raises:
        ValueError: one line, for a benchmark that cannot be read.
    """

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.benchmarks = benchmarks
        self.rows: dict[str, int] = {}
        hashes, in_row, rows, sizes = array("Q"), array("q"), array("q"), array("q")
        self._short: dict[str, int] = {}
        asked = list(self._read())
        for place, text in asked:
            self.rows[benchmarks[place >> 40].name] = place & (2**40 - 1)
            words = _WORD.findall(text.casefold())
            found = _ngrams(words)
            hashes.extend(found)
            in_row.extend([len(rows)] * len(found))
            rows.append(place)
            sizes.append(len(found) if len(words) >= LENGTH else 0)  # 0: is not held by n-grams
            if len(words) < LENGTH and sum(map(_weight, words)) >= SHORTEST:
                self._short.setdefault(_with_signs(text), place)
        order = np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")
        self._hashes = np.frombuffer(hashes, dtype=np.uint64)[order]
        self._in_row = np.frombuffer(in_row, dtype=np.int64)[order]
        self._rows, self._sizes = np.frombuffer(rows, dtype=np.int64), np.frombuffer(sizes, dtype=np.int64).copy()
        self._lengths = sorted({text.count(" ") + 1 for text in self._short})
        self._leave_out_phrases(asked)

    def _read(self) -> Iterator[tuple[int, str]]:
        """Number of the benchmark and row in one, and the question there."""
        for number, benchmark in enumerate(self.benchmarks):
            for row, values in enumerate(read_rows(benchmark.path), start=1):
                if benchmark.question not in values:
                    raise ValueError(f"{benchmark.path} has no column {benchmark.question!r}")
                yield number << 40 | row, str(values[benchmark.question])

    def _leave_out_phrases(self, asked: Sequence[tuple[int, str]]) -> None:
        """Looks for no question that is a common part of questions, as "Which of the following is true?"."""
        holders, seen = Counter[int](), set[str]()
        for place, text in asked:
            if (words := _with_signs(text)) not in seen:  # one that is asked again holds nothing new
                seen.add(words)
                _, rows, counts = self._hits(text)
                holders.update(held for held in self._held(text, rows, counts) if held != place)
        phrases = {place for place, count in holders.items() if count >= PHRASE}
        self._sizes[np.isin(self._rows, list(phrases))] = 0
        self._short = {text: place for text, place in self._short.items() if place not in phrases}

    def overlap(self, text: str) -> Overlap | None:
        """How far a question stands in the benchmarks, or one of theirs in it; None if no n-gram of it does and none of
        theirs does."""
        if not len(self._hashes):
            return None
        share, rows, counts = self._hits(text)
        if held := self._held(text, rows, counts):
            return self._overlap(held[0], 1.0)
        return self._overlap(int(self._rows[rows[counts.argmax()]]), share) if len(rows) else None

    def _overlap(self, place: int, share: float) -> Overlap:
        return Overlap(self.benchmarks[place >> 40].name, place & (2**40 - 1), share)

    def _hits(self, text: str) -> tuple[float, Indices, Indices]:
        """Which share of a text's n-grams stands in the benchmarks; in which of all rows, and how many in each."""
        ngrams = _ngrams(_WORD.findall(text.casefold()))
        wanted = np.array(ngrams, dtype=np.uint64)
        starts, ends = (np.searchsorted(self._hashes, wanted, side).tolist() for side in ("left", "right"))
        found = [self._in_row[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
        rows, counts = np.unique(np.concatenate(found or [self._in_row[:0]]), return_counts=True)
        return len(found) / max(1, len(ngrams)), rows, counts

    def _held(self, text: str, rows: Indices, counts: Indices) -> list[int]:
        """The places of the benchmarks' questions that stand in a text whole."""
        held = set(self._rows[rows[self._sizes[rows] == counts]].tolist())
        words = _with_signs(text).split()
        for length in self._lengths:
            runs = (" ".join(words[n : n + length]) for n in range(len(words) - length + 1))
            held |= {self._short[run] for run in runs if run in self._short}
        return sorted(held)


def _ngrams(words: list[str]) -> list[int]:
    found = {" ".join(words[n : n + LENGTH]) for n in range(max(1, len(words) - LENGTH + 1))} - {""}
    return [int.from_bytes(blake2b(ngram.encode(errors="replace"), digest_size=8).digest()) for ngram in found]


def _with_signs(text: str) -> str:
    return " ".join(_WORD_OR_SIGN.findall(text.casefold())).rstrip(" =")


def _weight(word: str) -> float:
    return UNSPACED_WEIGHT if _UNSPACED.match(word) else 1.0
