"""How different the threads of a lattice are: a pure function of their tokens, for rewards and for reports."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

NGRAM = 3
"""Length of the token runs that `token_diversity` compares."""


def token_diversity(threads: Sequence[Sequence[int]], length: int = NGRAM) -> float:
    """Mean over all pairs of threads of the Jaccard distance of their sets of token n-grams; 0 for a single thread."""
    runs = [{tuple(ids[n : n + length]) for n in range(max(1, len(ids) - length + 1))} for ids in threads]
    distances = [1 - len(a & b) / len(a | b) for a, b in combinations(runs, 2)]
    return sum(distances) / len(distances) if distances else 0.0
