"""Intervals and tests against scipy, statsmodels and published values, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lace.eval.stats import Estimate, bootstrap_difference, bootstrap_mean, holm, mcnemar, permutation, wilson


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I: 81 of 263 and 15 of 148 and 0 of 20."""
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]:
        found = wilson(successes, n)
        assert (found.value, found.low, found.high) == pytest.approx((successes / n, low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (7, 7), (934, 1000), (1, 5000)])
def test_wilson_against_statsmodels(successes: int, n: int) -> None:
    found = wilson(successes, n)
    assert (found.low, found.high) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


def test_bootstrap_against_scipy() -> None:
    values = np.random.default_rng(1).exponential(2, 150)
    found = bootstrap_mean(values)
    other = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(3)).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.05 * width(found))


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        found = bootstrap_mean(rng.integers(0, 2, 100))
        covered += found.low <= 0.5 <= found.high
    assert covered >= 52


def test_a_puzzle_is_one_draw_however_many_seeds_solve_it() -> None:
    """Seeds that agree on every puzzle are no more evidence than one of them."""
    values = np.random.default_rng(4).integers(0, 2, 300)
    assert bootstrap_mean([values] * 5) == bootstrap_mean(values)


def test_the_interval_covers_training_seeds() -> None:
    """Models that differ by their seed alone: the interval is that of their means, as scipy resamples them."""
    means = np.array([0.1, 0.3, 0.35, 0.6, 0.7, 0.9])
    found = bootstrap_mean(np.tile(means[:, None], (1, 400)))
    other = bootstrap((means,), np.mean, method="percentile", rng=np.random.default_rng(5)).confidence_interval
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.05 * width(found))


def test_two_level_interval_covers_a_difference_of_recipes() -> None:
    """Each recipe's models scatter by 4 points, each puzzle's difficulty by much more; recipes differ by 10 points."""
    rng, covered, blind = np.random.default_rng(6), 0, 0
    for _ in range(60):
        difficulty = rng.normal(0, 0.2, 150)
        first, second = (
            mean + rng.normal(0, 0.04, (8, 1)) + difficulty + rng.normal(0, 0.1, (8, 150)) for mean in (0.6, 0.5)
        )
        found = bootstrap_difference(first, second)
        covered += found.low <= 0.1 <= found.high
        one = bootstrap_difference(first[0], second[0])
        blind += one.low <= 0.1 <= one.high
    assert covered >= 52
    assert blind < 40  # an interval over puzzles alone does not know that training anew gives another model


def test_pairing_takes_the_difficulty_of_puzzles_out() -> None:
    rng = np.random.default_rng(7)
    difficulty = rng.normal(0, 1, 500)
    first, second = difficulty + 0.1, difficulty + rng.normal(0, 0.01, 500)
    found = bootstrap_difference(first, second)
    assert found.low <= 0.1 <= found.high
    assert width(found) < 0.05 * width(bootstrap_mean(first))


@pytest.mark.parametrize(("both", "only_first", "only_second"), [(5, 0, 0), (9, 1, 0), (3, 14, 5), (40, 200, 290)])
def test_mcnemar_against_statsmodels(both: int, only_first: int, only_second: int) -> None:
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * 4
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * 4
    expected = statsmodels_mcnemar([[both, only_first], [only_second, 4]], exact=True).pvalue if only_first else 1.0
    found = mcnemar(first, second)
    assert found.p == pytest.approx(expected, rel=1e-9)
    assert (found.test, found.differing) == ("mcnemar", only_first + only_second)


def test_mcnemar_of_thousands_of_puzzles_neither_overflows_nor_vanishes() -> None:
    first, second = np.ones(3000), np.zeros(3000)
    second[:1000] = 1
    assert 0 < mcnemar(first[:2000], second[:2000]).p < 1e-299
    assert mcnemar(first, first).p == 1


def test_permutation_against_scipy_with_every_flip() -> None:
    rng = np.random.default_rng(8)
    first, second = rng.normal(0.5, 1, 12), rng.normal(0, 1, 12)

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(x - y, axis=axis)

    exact = permutation_test((first, second), statistic, permutation_type="samples", n_resamples=np.inf).pvalue
    assert permutation(first, second).p == pytest.approx(exact, abs=0.005)


def test_permutation_of_yes_and_no_is_mcnemar() -> None:
    rng = np.random.default_rng(9)
    first, second = rng.random(400) < 0.5, rng.random(400) < 0.43
    assert permutation(first, second).p == pytest.approx(mcnemar(first, second).p, abs=0.006)


def test_permutation_takes_a_puzzle_with_all_its_seeds() -> None:
    rng = np.random.default_rng(10)
    first, second = rng.integers(0, 9, 200) / 8, rng.integers(0, 8, 200) / 8
    assert permutation([first] * 3, [second] * 2) == permutation(first, second)
    assert permutation(first, first).p == 1
    assert permutation(first + 5, second).p == pytest.approx(1e-5, rel=0.01)


def test_holm_against_statsmodels() -> None:
    rng = np.random.default_rng(11)
    for n in (1, 2, 9, 40):
        p_values = rng.random(n) ** 3
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([0.04, 0.01, 0.04]) == pytest.approx([0.08, 0.03, 0.08])
    assert holm([]) == []


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="proportion"):
        wilson(successes, n)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean(np.array([]))
    for paired in (bootstrap_difference, permutation):
        with pytest.raises(ValueError, match="same puzzles, not 3 and 2"):
            paired([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="equally long"):
        mcnemar([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="yes or no"):
        mcnemar([0.5, 0], [1, 0])
