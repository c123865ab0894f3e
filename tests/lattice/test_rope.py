from __future__ import annotations

import torch

from lace.lattice.rope import lattice_angles, rotate
from tiny import tiny_config


def _score(config, query, key, query_place, key_place) -> torch.Tensor:
    """Product of a query and a key turned to their (step, thread id)."""
    turned = []
    for vector, (step, thread) in ((query, query_place), (key, key_place)):
        cos, sin = lattice_angles(config, torch.tensor([[step]]), torch.tensor([thread]))
        turned.append(rotate(vector, cos[0, 0], sin[0, 0]))
    return turned[0] @ turned[1]


def test_scores_depend_on_distances_in_time_and_thread_id_only() -> None:
    torch.manual_seed(0)
    config = tiny_config(time_dims=24, thread_dims=8)
    query, key = torch.randn(2, config.head_dim)
    score = _score(config, query, key, (9, 5), (4, 2))
    torch.testing.assert_close(score, _score(config, query, key, (15, 5), (10, 2)))
    torch.testing.assert_close(score, _score(config, query, key, (9, 25), (4, 22)))
    assert (score - _score(config, query, key, (10, 5), (4, 2))).abs() > 1e-3
    assert (score - _score(config, query, key, (9, 6), (4, 2))).abs() > 1e-3


def test_dimensions_are_split_between_time_and_thread() -> None:
    config = tiny_config(time_dims=8, thread_dims=4)
    cos, _ = lattice_angles(config, torch.tensor([[0, 3], [0, 3]]), torch.tensor([1, 7]))
    time, thread = [0, 1, 2, 3, 6, 7, 8, 9], [4, 5, 10, 11]
    assert torch.equal(cos[0][:, time], cos[1][:, time])
    assert torch.equal(cos[:, 0][:, thread], cos[:, 1][:, thread])
    assert (cos[0, 1, time] != cos[0, 0, time]).all()
    assert (cos[0, 0, thread] != cos[1, 0, thread]).all()


def test_rotation_keeps_lengths_and_thread_dims_may_be_none() -> None:
    config = tiny_config(time_dims=8, thread_dims=0)
    cos, sin = lattice_angles(config, torch.arange(6)[None], torch.tensor([3]))
    x = torch.randn(1, 6, 8)
    torch.testing.assert_close(rotate(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
