"""What each token read of other threads, told while they decode.

    strength of an entry = max over layers of mean over heads of  gate_h * attention_h

A step of a scheduler is observed with hooks that compute each lattice layer's reading a second time, as
`lace.lattice.observe` does: it changes no token, and steps that nobody asks about pay nothing. As in a recording
(`lace.viz.trace`) the reading of a token is that of the query which chose it, one step before.

Shape letters: L lattices of the batch, of which P are observed; N threads of the widest; S steps that can be read,
E = S * N entries (time-major); H heads; K dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from lace.engine.result import LatticeResult, Reading, TokenEvent
from lace.engine.scheduler import Scheduler
from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.graft import lattice_layers
from lace.lattice.observe import reading_parts

MOST_READINGS = 3
"""Told of each token at most, the strongest first."""
FAINT = 0.01
"""Weaker ones are not told."""


def step_with_exchanges(scheduler: Scheduler, handles: Collection[int]) -> list[tuple[int, TokenEvent | LatticeResult]]:
    """`Scheduler.step`, whose sampled tokens of the lattices `handles` also say what they had read."""
    watch = _Watch(scheduler, handles)
    layers = [layer for layer in lattice_layers(scheduler.model) if isinstance(layer, LatticeAttention)]
    hooks = [layer.register_forward_hook(watch.take) for layer in layers]
    try:
        events = scheduler.step()
    finally:
        for hook in hooks:
            hook.remove()
    readings = watch.readings()
    return [
        (handle, replace(event, readings=readings.get((handle, event.thread), ())))
        if isinstance(event, TokenEvent) and event.logprob is not None
        else (handle, event)
        for handle, event in events
    ]


class _Watch:
    """The hooks of one step, and what they have found."""

    def __init__(self, scheduler: Scheduler, handles: Collection[int]) -> None:
        self.scheduler, self.handles = scheduler, handles
        self.strengths_PNE: torch.Tensor | None = None

    def take(self, module: LatticeAttention, args: tuple[torch.Tensor, ThreadLayout], output: Any) -> None:
        """Adds what one layer read."""
        if self.strengths_PNE is None:
            # Rows and seats change before the step is over.
            seats = enumerate(self.scheduler.seats)
            self.observed = [
                (place, seat.lattice.index, len(seat.lattice.threads), seat.step)
                for place, seat in seats
                if seat.lattice.index in self.handles and seat.in_lattice
            ]
        places = [place for place, *_ in self.observed]
        if not places:
            return
        x_RTD, layout = args
        q_RTHK, k_LSNK, _, gate_RTH = reading_parts(module, x_RTD, layout)
        rows_PN = layout.rows_LN[places]
        k_PEK = k_LSNK[places].flatten(1, 2)
        null_P1K = module.null_key.float().expand(len(places), 1, -1)
        scores_PNHE = torch.einsum("pnhk,pek->pnhe", q_RTHK[rows_PN, 0], torch.cat((null_P1K, k_PEK), dim=1))
        scores_PNHE = scores_PNHE / module.config.head_dim**0.5
        unseen_PN1E = ~layout.seen_LQE[places][:, :, None]
        weights_PNHE = scores_PNHE.masked_fill(unseen_PN1E, -torch.inf).softmax(dim=-1)[..., 1:]
        through_PNE = (weights_PNHE * gate_RTH[rows_PN, 0][..., None]).mean(dim=2)
        threads = rows_PN.shape[1]
        own_NE = torch.arange(threads)[:, None] == torch.arange(through_PNE.shape[-1]) % threads
        through_PNE = through_PNE.masked_fill(own_NE.to(through_PNE.device), 0)
        found = self.strengths_PNE
        self.strengths_PNE = through_PNE if found is None else torch.maximum(found, through_PNE)

    def readings(self) -> dict[tuple[int, int], tuple[Reading, ...]]:
        """The strongest readings by handle and thread."""
        if self.strengths_PNE is None:
            return {}
        threads, entries = self.strengths_PNE.shape[1:]
        top = self.strengths_PNE.topk(min(MOST_READINGS, entries))
        weights_PNX, entries_PNX = top.values.tolist(), top.indices.tolist()
        found = {}
        for (_, handle, count, step), weights_NX, entries_NX in zip(
            self.observed, weights_PNX, entries_PNX, strict=True
        ):
            first = step - entries // threads  # of the steps in the cache; the last is that of the query
            for n in range(count):
                found[handle, n] = tuple(
                    Reading(entry % threads, first + entry // threads, weight)
                    for weight, entry in zip(weights_NX[n], entries_NX[n], strict=True)
                    if weight >= FAINT
                )
        return found
