"""Near-duplicates by MinHash: found over any number of questions in 128 bytes of memory each.

Questions of one template that differ in a number are different questions, so only those with the same numbers are
compared. Candidates that share a band of their signatures are compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from datasketch import MinHash

from lace.data.pipeline.keyed_log import content_hash

BANDS, ROWS = 16, 4
"""At a similarity of 0.8 a pair shares a band in 99.98 % of cases."""
COMPARED = 20
"""Earlier questions of a band that each one is compared with at most."""
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Chinese characters, for a class of a regular expression: each is a word, since no spaces are written."""
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def shingles(text: str) -> set[str]:
    """Word trigrams, case folded; a shorter text is one."""
    words = _WORD.findall(text.casefold())
    return {" ".join(words[n : n + 3]) for n in range(max(1, len(words) - 2))}


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the shingles, 0 for texts of other numbers."""
    if _NUMBER.findall(first) != _NUMBER.findall(second):
        return 0.0
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


class NearDuplicates:
    """Collects signatures of texts, then finds the repetitions among them."""

    def __init__(self) -> None:
        self._bands = bytearray()

    def add(self, text: str) -> None:
        """Takes the next text."""
        signature = MinHash(num_perm=BANDS * ROWS)
        signature.update_batch([shingle.encode() for shingle in shingles(text)])
        numbers = int(content_hash(_NUMBER.findall(text))[:16], 16)
        rows = signature.hashvalues.reshape(BANDS, ROWS).tolist()
        keys = [hash((numbers, *row)) & (2**64 - 1) for row in rows]
        self._bands += np.array(keys, dtype=np.uint64).tobytes()

    def find(self, text_of: Callable[[int], str], least: float) -> dict[int, int]:
        """The texts that repeat an earlier one.

        Args:
            text_of: the text of a number, counted from 0 in the order of `add`.
            least: similarity from which on a text repeats another.

        Returns:
            Number of each repetition -> number of the earlier text.
        """
        keys = np.frombuffer(self._bands, dtype=np.uint64).reshape(-1, BANDS)
        repeats: dict[int, int] = {}
        for band in keys.T:
            order = np.argsort(band, kind="stable")
            starts = np.flatnonzero(np.r_[True, band[order][1:] != band[order][:-1]])
            for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
                if end - start > 1:
                    self._compare([int(n) for n in order[start:end]], text_of, least, repeats)
        return repeats

    @staticmethod
    def _compare(group: list[int], text_of: Callable[[int], str], least: float, repeats: dict[int, int]) -> None:
        """Compares each of a group, in rising order, with those before it that are no repetitions themselves."""
        kept: list[int] = []
        for number in group:
            if number in repeats:
                continue
            text = text_of(number)
            same = next((other for other in kept[:COMPARED] if similarity(text, text_of(other)) >= least), None)
            if same is None:
                kept.append(number)
            else:
                repeats[number] = same
