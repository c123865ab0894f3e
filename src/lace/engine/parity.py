"""Whether two runs of one lattice wrote the same; where not, whether rounding alone can have parted them.

A sum of floating-point numbers depends on how a library cuts a batch, so a lattice among others may compute a
log-probability that differs in the last bits. That shows only where a draw falls on the border between two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lace.engine.engine import Engine
from lace.engine.result import Strategy
from lace.engine.sampling import SamplingParams, choose_tokens
from lace.engine.threads import Lattice

ROUNDING = 1e-4
"""Largest difference of a log-probability, or of a cumulative probability, that counts as rounding."""


class Parting(NamedTuple):
    """Where two runs first differ."""

    thread: int
    step: int
    tokens: set[int]
    """What the two runs wrote there."""
    nearby: set[int]
    """What the thread may write there if draws and borders are moved by rounding."""

    @property
    def by_rounding(self) -> bool:
        return len(self.tokens) == 2 and self.tokens <= self.nearby


def compare(
    engine: Engine,
    prompt: str,
    params: SamplingParams,
    one: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    strategy: Strategy = "lace",
) -> Parting | None:
    """The first difference between two runs; None if there is none.

    Args:
        engine: whose model ran.
        prompt, params, strategy: of both runs.
        one, other: sampled tokens of each thread, end tokens included.
    """
    lattice = engine.new_lattice(prompt, params, strategy)
    partings = []
    for n, (a, b) in enumerate(zip(one, other, strict=True)):
        if list(a) != list(b):
            same = [x == y for x, y in zip(a, b, strict=False)]
            place = same.index(False) if False in same else len(same)
            partings.append((place + len(lattice.threads[n].opening), n, place))
    if not partings:
        return None
    step, n, place = min(partings)
    tokens = {ids for run in (one, other) for ids in run[n][place : place + 1]}
    return Parting(n, step, tokens, _draws_nearby(engine, lattice, one, step, n))


@torch.inference_mode()
def _draws_nearby(engine: Engine, lattice: Lattice, run: Sequence[Sequence[int]], step: int, n: int) -> set[int]:
    """Tokens that thread `n` draws at `step` if its uniform number and top-p are moved by rounding.

    The distribution is computed anew, of the whole lattice and without any cache.
    """
    prompt, params = lattice.prompt_ids, lattice.params
    written = [[*t.opening, *ids][:step] for t, ids in zip(lattice.threads, run, strict=True)]
    width = len(prompt) + max(map(len, written))
    ids_RT = torch.zeros(len(written), width, dtype=torch.long)
    steps_RT = torch.full_like(ids_RT, -1)
    for row, own in enumerate(written):
        ids_RT[row, : len(prompt) + len(own)] = torch.tensor([*prompt, *own])
        steps_RT[row, len(prompt) : len(prompt) + len(own)] = torch.arange(len(own))
    device = engine.model.device
    layout = {
        "steps": steps_RT.to(device),
        "thread_ids": torch.tensor([thread.label for thread in lattice.threads], device=device),
        "lattice_rows": torch.arange(len(written), device=device)[None],
    }
    out = engine.model(input_ids=ids_RT.to(device), **(layout if lattice.strategy == "lace" else {}))
    logits_1V = out.logits[n, len(prompt) + len(written[n]) - 1][None].float().cpu()
    if params.temperature == 0:
        return set((logits_1V[0] >= logits_1V[0].max() - ROUNDING).nonzero()[:, 0].tolist())
    drawn = set()
    for by in (-ROUNDING, 0.0, ROUNDING):
        for top_p in {params.top_p, min(1.0, params.top_p + ROUNDING), params.top_p - ROUNDING}:
            uniform = (lattice.uniforms_SN[step, n : n + 1] + by).clamp(0, 1 - 1e-12)
            given = torch.tensor([params.temperature]), torch.tensor([params.top_k]), torch.tensor([top_p])
            drawn.add(int(choose_tokens(logits_1V, uniform, *given, True)[0]))
    return drawn
