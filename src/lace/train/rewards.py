"""The reward of a rollout, which is a whole lattice: the answer of its best thread, the form of its tags, and how
different its threads are. Pure functions of what the engine returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lace.engine.diversity import token_diversity
from lace.engine.result import LatticeResult
from lace.engine.selection import Tag


@dataclass(frozen=True)
class RewardWeights:
    """What each part of the reward counts."""

    correct: float = 1.0
    """Of a right answer."""
    form: float = 0.1
    """Of tags in due form."""
    diversity: float = 0.1
    """Of the threads' distance from each other, if the answer is right."""
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
    threads: tuple[float, ...] = ()
    """Reward of each thread, where each is rewarded for itself."""


def well_formed(tags: Sequence[Tag | None]) -> bool:
    """Whether every thread has a tag and exactly one calls itself best."""
    return None not in tags and list(tags).count("best") == 1


def diversity_of_tokens(result: LatticeResult) -> float:
    """`token_diversity` of what the threads have sampled."""
    return token_diversity([thread.token_ids for thread in result.threads])


def lattice_reward(
    result: LatticeResult,
    check: Callable[[str | None], bool],
    weights: RewardWeights | None = None,
    diversity: Callable[[LatticeResult], float] = diversity_of_tokens,
) -> LatticeReward:
    """Rewards one lattice.

    Args:
        result: one rollout.
        check: whether an answer is right.
        weights: what counts how much.
        diversity: of the threads, in 0..1; for text see `lace.train.embedding_diversity`. It is paid only to a right
            answer, and up to the cap.

    Returns:
        The reward, with `total = w_correct correct + w_form form + correct w_diversity min(diversity, cap)`.
    """
    weights = weights or RewardWeights()
    right = tuple(float(check(thread.answer)) for thread in result.threads)
    form = float(well_formed([thread.tag for thread in result.threads]))
    # A fallback vote is how we answer in the end, but it is not what the model has learned to say.
    correct = right[result.chosen] if result.chosen_by == "best_tag" else 0.0
    spread = diversity(result)
    paid = correct * min(spread, weights.diversity_cap)
    total = weights.correct * correct + weights.form * form + weights.diversity * paid
    return LatticeReward(total, correct, form, spread, right)


def independent_reward(
    result: LatticeResult,
    check: Callable[[str | None], bool],
    weights: RewardWeights | None = None,
    diversity: Callable[[LatticeResult], float] = diversity_of_tokens,
) -> LatticeReward:
    """Rewards threads that could not read each other, each for itself: `w_correct right + w_form tagged`. Which of them
    is best none can know, and to differ from the others is not in its power.

    Args:
        result: one rollout of the strategy `independent`.
        check: whether an answer is right.
        weights: what counts how much.
        diversity: of the threads, for the log alone.

    Returns:
        `threads` has the rewards, `total` their mean; `correct` is of the thread that answers for them all, by a vote
        unless just one calls itself best; `form` is the share of threads that have a tag.
    """
    weights = weights or RewardWeights()
    right = tuple(float(check(thread.answer)) for thread in result.threads)
    tagged = [float(thread.tag is not None) for thread in result.threads]
    threads = tuple(weights.correct * r + weights.form * t for r, t in zip(right, tagged, strict=True))
    count = len(threads)
    return LatticeReward(
        sum(threads) / count, right[result.chosen], sum(tagged) / count, diversity(result), right, threads
    )
