"""How well a model adds."""

from __future__ import annotations

from random import Random

import pytest
import torch

from lace.lattice.checkpoint import SHIPPED_DIRECTORY, load
from lace.train.sum_skill import ask, wrong_share


def test_wrong_share_of_the_embedded_model() -> None:
    """5.7 %, as the README says."""
    loaded = load(SHIPPED_DIRECTORY / "puzzles")
    assert loaded.tokenizer is not None
    assert wrong_share(loaded.model, loaded.tokenizer, 2_400, seed=5) == pytest.approx(0.057, abs=0.015)


def test_probabilities_belong_to_the_sums_asked() -> None:
    """In a row of twelve, and in a last one that is shorter and padded."""
    loaded = load(SHIPPED_DIRECTORY / "puzzles")
    assert loaded.tokenizer is not None
    sums = [(400 + 17 * n, (11 + n) * (-1) ** n) for n in range(15)]
    ((asked, probabilities_EN),) = ask(loaded.model, loaded.tokenizer, sums, Random(3))
    assert list(asked) == sums
    assert probabilities_EN.shape == (15, 800)
    torch.testing.assert_close(probabilities_EN.sum(-1), torch.ones(15))
    right = torch.tensor([x + term for x, term in sums])
    assert (probabilities_EN.argmax(-1) == right).sum() >= 12
