"""The reward of a rollout, which is a whole lattice: the answer of its best thread, the form of its tags, and how
different its threads are. Pure functions of what the engine returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from lace.engine.result import LatticeResult
from lace.engine.selection import Tag

NGRAM = 3
"""Length of the token runs that `token_diversity` compares."""


@dataclass(frozen=True)
class RewardWeights:
    """What each part of the reward counts."""

    correct: float = 1.0
    form: float = 0.1
    diversity: float = 0.1
    diversity_cap: float = 0.5
    """Diversity beyond this earns nothing: too large a weight on it destroys the tags (arXiv 2604.15529)."""
    thread: float = 0.0
    """Of a thread's own right answer, in its own advantage alone; 0: one advantage shared by all threads."""


@dataclass(frozen=True)
class LatticeReward:
    """The reward of one lattice and its parts."""

    total: float
    correct: float
    """1 if the answer of the one thread that calls itself best is right."""
    form: float
    """1 if every thread has a tag and exactly one is `[[best]]`."""
    diversity: float
    """In 0..1, whether it was rewarded or not."""
    thread_correct: tuple[float, ...]
    """Whether each thread's answer is right."""


def well_formed(tags: Sequence[Tag | None]) -> bool:
    """Whether every thread has a tag and exactly one calls itself best."""
    return None not in tags and list(tags).count("best") == 1


def token_diversity(threads: Sequence[Sequence[int]], length: int = NGRAM) -> float:
    """Mean over all pairs of threads of the Jaccard distance of their sets of token n-grams; 0 for a single thread."""
    runs = [{tuple(ids[n : n + length]) for n in range(max(1, len(ids) - length + 1))} for ids in threads]
    distances = [1 - len(a & b) / len(a | b) for a, b in combinations(runs, 2)]
    return sum(distances) / len(distances) if distances else 0.0


def lattice_reward(
    result: LatticeResult,
    check: Callable[[str | None], bool],
    weights: RewardWeights | None = None,
    diversity: Callable[[Sequence[Sequence[int]]], float] = token_diversity,
) -> LatticeReward:
    """Rewards one lattice.

    Args:
        result: one rollout.
        check: whether an answer is right.
        weights: what counts how much.
        diversity: of the threads' token ids, in 0..1. It is paid only to a right answer, and up to the cap.

    Returns:
        The reward, with `total = w_correct correct + w_form form + correct w_diversity min(diversity, cap)`.
    """
    weights = weights or RewardWeights()
    right = tuple(float(check(thread.answer)) for thread in result.threads)
    form = float(well_formed([thread.tag for thread in result.threads]))
    # A fallback vote is how we answer in the end, but it is not what the model has learned to say.
    correct = right[result.chosen] if result.chosen_by == "best_tag" else 0.0
    spread = diversity([thread.token_ids for thread in result.threads])
    paid = correct * min(spread, weights.diversity_cap)
    total = weights.correct * correct + weights.form * form + weights.diversity * paid
    return LatticeReward(total, correct, form, spread, right)
