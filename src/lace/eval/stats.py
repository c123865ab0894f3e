"""Intervals and tests for what is reported: numpy arrays of one value per puzzle in, small results out.

Shape letters: S training seeds, P puzzles, R resamples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
RESAMPLES = 10_000
FLIPS = 100_000
"""Draws of the permutation test: its smallest p is one in this many, small enough for Holm's correction."""
BLOCK = 4_000_000
"""Numbers that are drawn or weighed at once, for the sake of memory."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class PairedTest:
    """A two-sided p of "no difference" for paired values."""

    p: float
    test: Literal["mcnemar", "permutation"]
    differing: int
    """Pairs that differ; the others say nothing about the sign of the difference."""


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with its Wilson score interval (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    Raises:
        ValueError: if n < 1 or successes are not in 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Estimate(p, min(p, centre - half), max(p, centre + half))


# --- bootstrap --------------------------------------------------------------------------------------------------


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean with a percentile bootstrap interval (Efron 1979); a puzzle is resampled whole, threads and seeds and all.

    Two levels: with values of several training seeds, each resample draws puzzles with replacement, the same ones for
    all seeds, and training seeds with replacement, so that the interval covers another choice of either. Seeds and
    puzzles are crossed, not nested (every model meets every puzzle): this is Owen's pigeonhole bootstrap (2007), whose
    variance is if anything too large in the puzzles. In the seeds it is too small by the factor (S - 1) / S: three
    seeds give a rough idea only of what training anew would do. With one seed the interval says nothing about it.

    Args:
        values: (P,), or (S, P) for several training seeds.
        seed: of the resampling.

    Raises:
        ValueError: if there are no values.
    """
    values_SP = _by_seed(values)
    return _interval(float(values_SP.mean()), _resampled_means(values_SP, seed, stream=1))


def bootstrap_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `first - second` on the same puzzles, with the two-level interval of `bootstrap_mean`.

    Each resample draws the same puzzles for both sides. Training seeds are drawn on each side for itself, since seed 1
    of one recipe has nothing in common with seed 1 of another; so the sides may have different numbers of them.

    Args:
        first, second: (P,) or (S, P), with the same puzzles in the same order.
        seed: of the resampling.

    Raises:
        ValueError: if there are no values, or the numbers of puzzles differ.
    """
    first_SP, second_SP = _by_seed(first), _by_seed(second)
    _same_puzzles(first_SP, second_SP)
    means_R = _resampled_means(first_SP, seed, stream=1) - _resampled_means(second_SP, seed, stream=2)
    return _interval(float(first_SP.mean() - second_SP.mean()), means_R)


def _by_seed(values: ArrayLike) -> NDArray[np.float64]:
    values_SP = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values_SP.size == 0:
        raise ValueError("no values to average")
    return values_SP


def _same_puzzles(first_SP: NDArray[np.float64], second_SP: NDArray[np.float64]) -> None:
    if first_SP.shape[1] != second_SP.shape[1]:
        raise ValueError(f"paired values need the same puzzles, not {first_SP.shape[1]} and {second_SP.shape[1]}")


def _interval(value: float, means_R: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(means_R, [2.5, 97.5])
    # Rounding alone could put the mean of equal values outside.
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def _resampled_means(values_SP: NDArray[np.float64], seed: int, stream: int) -> NDArray[np.float64]:
    """(R,) means over drawn seeds and puzzles. The draws of puzzles hang on `seed` alone, those of training seeds also
    on `stream`."""
    seeds, puzzles = values_SP.shape
    weights_RP = _puzzle_weights(puzzles, seed)
    blocks = np.array_split(weights_RP, max(1, weights_RP.size // BLOCK))
    means_SR = np.concatenate([values_SP @ block.T.astype(np.float64) for block in blocks], axis=1) / puzzles
    drawn_SR = np.random.default_rng([seed, stream]).integers(0, seeds, (seeds, RESAMPLES))
    return np.asarray(np.take_along_axis(means_SR, drawn_SR, axis=0).mean(axis=0))


@functools.lru_cache(maxsize=1)
def _puzzle_weights(puzzles: int, seed: int) -> NDArray[np.uint8]:
    """(R, P) how often each puzzle is drawn in each resample; kept, since a report has hundreds of intervals."""
    rng = np.random.default_rng([seed, 0])
    weights_RP = np.empty((RESAMPLES, puzzles), dtype=np.uint8)  # about Poisson(1): never near 255
    for row in weights_RP:
        row[:] = np.bincount(rng.integers(0, puzzles, puzzles), minlength=puzzles)
    return weights_RP


# --- tests ------------------------------------------------------------------------------------------------------


def mcnemar(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """McNemar's exact test (1947) of paired yes and no: among the puzzles that only one side solves, both sides
    solve equally many but for chance. Two-sided binomial p.

    Args:
        first, second: (P,) of 0 and 1, or booleans.

    Raises:
        ValueError: if the numbers of puzzles differ, or a value is neither 0 nor 1.
    """
    first_P, second_P = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first_P.shape != second_P.shape or first_P.ndim != 1:
        raise ValueError(f"McNemar's test needs two equally long rows, not {first_P.shape} and {second_P.shape}")
    if not np.isin([first_P, second_P], [0, 1]).all():
        raise ValueError("McNemar's test needs yes or no, 1 or 0, for each puzzle")
    only_first, only_second = int((first_P > second_P).sum()), int((first_P < second_P).sum())
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return PairedTest(min(1.0, 2 * tail / 2**n), "mcnemar", n)  # integers as large as need be, so exact


def permutation(first: ArrayLike, second: ArrayLike, seed: int = 0) -> PairedTest:
    """Paired permutation test (Fisher 1935): the sign of each puzzle's difference is flipped at random, `FLIPS` times,
    and p is the share of flips, the observed signs included, whose mean is at least as far from 0.

    With several training seeds a puzzle's difference is that of its means over seeds. So p is about these trained
    models on other puzzles; only the interval of `bootstrap_difference` covers other training seeds.

    Args:
        first, second: (P,) or (S, P), with the same puzzles in the same order.
        seed: of the flips.

    Raises:
        ValueError: if there are no values, or the numbers of puzzles differ.
    """
    first_SP, second_SP = _by_seed(first), _by_seed(second)
    _same_puzzles(first_SP, second_SP)
    difference_P = (first_SP.mean(axis=0) - second_SP.mean(axis=0)).round(12)
    # Flips of c equal sizes are one binomial draw: few sizes occur where threads are counted.
    sizes, counts = np.unique(np.abs(difference_P[difference_P != 0]), return_counts=True)
    if len(sizes) == 0:
        return PairedTest(1.0, "permutation", 0)
    observed = abs(float(difference_P.sum())) * (1 - 1e-9)  # equal sums count, however rounded
    rng, extreme = np.random.default_rng(seed), 0
    for block in np.array_split(np.arange(FLIPS), FLIPS * len(sizes) // BLOCK + 1):
        sums = (2 * rng.binomial(counts, 0.5, (len(block), len(sizes))) - counts) @ sizes
        extreme += int((np.abs(sums) >= observed).sum())
    return PairedTest((extreme + 1) / (FLIPS + 1), "permutation", int(counts.sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p values of a family of tests, in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
