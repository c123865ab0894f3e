"""Who may read whom: one pure function, used alike in training, in recomputing log-probabilities and in decoding."""

from __future__ import annotations

import torch

from lace.lattice.config import Visibility


def visible(
    query_steps: torch.Tensor,
    key_steps: torch.Tensor,
    same_thread: torch.Tensor,
    visibility: Visibility,
    read_self: bool = False,
    horizon: int = 0,
) -> torch.Tensor:
    """Which lattice entries each query reads.

    A step is the index of a generated token in its thread; -1 marks what is not in the lattice (prompt, padding, a
    thread that is not there, an entry not written), and neither reads nor is read.

    Args:
        query_steps: steps of the queries, broadcastable against `key_steps`.
        key_steps: steps of the entries.
        same_thread: whether query and entry belong to the same thread.
        visibility: `strict` reads entries of steps s < t, `causal` s <= t, `same_step` s == t.
        read_self: whether a thread reads its own entries too.
        horizon: how many of the newest of these steps are read, 0 for all.

    Returns:
        Boolean tensor of the broadcast shape.
    """
    newest = query_steps
    if visibility == "strict":
        in_time, newest = key_steps < query_steps, query_steps - 1
    elif visibility == "causal":
        in_time = key_steps <= query_steps
    else:
        in_time = key_steps == query_steps
    if horizon:
        in_time = in_time & (key_steps > newest - horizon)
    seen = in_time & (key_steps >= 0) & (query_steps >= 0)
    return seen if read_self else seen & ~same_thread
