from __future__ import annotations

import pytest
import torch

from lace.lattice.visibility import visible


@pytest.mark.parametrize(
    ("visibility", "read"),
    [("strict", {0, 1}), ("causal", {0, 1, 2}), ("same_step", {2})],
)
def test_steps_that_a_query_reads(visibility: str, read: set[int]) -> None:
    steps = torch.arange(-1, 5)
    seen = visible(torch.tensor(2), steps, torch.tensor(False), visibility)
    assert set(steps[seen].tolist()) == read


@pytest.mark.parametrize(
    ("visibility", "horizon", "read"),
    [
        ("strict", 1, {2}),
        ("strict", 2, {1, 2}),
        ("causal", 2, {2, 3}),
        ("causal", 9, {0, 1, 2, 3}),
        ("same_step", 1, {3}),
    ],
)
def test_newest_steps_within_the_horizon(visibility: str, horizon: int, read: set[int]) -> None:
    steps = torch.arange(-1, 6)
    seen = visible(torch.tensor(3), steps, torch.tensor(False), visibility, horizon=horizon)
    assert set(steps[seen].tolist()) == read


@pytest.mark.parametrize("visibility", ["strict", "causal", "same_step"])
def test_own_entries_only_with_read_self(visibility: str) -> None:
    steps = torch.arange(-1, 5)
    own = torch.tensor(True)
    assert not visible(torch.tensor(2), steps, own, visibility).any()
    others = visible(torch.tensor(2), steps, ~own, visibility)
    assert torch.equal(visible(torch.tensor(2), steps, own, visibility, read_self=True), others)


@pytest.mark.parametrize("visibility", ["strict", "causal", "same_step"])
def test_prompt_and_padding_neither_read_nor_are_read(visibility: str) -> None:
    nowhere, steps = torch.tensor(-1), torch.arange(-1, 5)
    assert not visible(nowhere, steps, torch.tensor(False), visibility, read_self=True).any()
    assert not visible(steps, nowhere, torch.tensor(False), visibility, read_self=True).any()
