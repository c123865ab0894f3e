"""Which row of a forward pass is which thread of which lattice: the same from step to step, until rows come or go.

Shape letters: R rows (threads of all lattices), L lattices, N threads of a lattice, K dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lace.lattice.config import LatticeConfig
from lace.lattice.rope import axis_frequencies


@dataclass(frozen=True)
class RowGrid:
    """The grid of L lattices by N threads that the rows stand in."""

    lattice_rows: torch.Tensor
    thread_ids: torch.Tensor
    present_LN: torch.Tensor
    """Whether there is such a thread."""
    rows_LN: torch.Tensor
    """Its row, 0 where there is none."""
    place_R: torch.Tensor
    """Index of each row in the flattened grid."""
    in_order: bool
    """Whether row r is known to be place r of a grid without gaps, so that nothing needs to be gathered."""
    time_K: torch.Tensor
    """Angle of each dimension per step."""
    thread_R1K: torch.Tensor
    """Angle of each dimension by the thread."""

    @classmethod
    def build(
        cls, config: LatticeConfig, lattice_rows: torch.Tensor, thread_ids: torch.Tensor, *, look: bool
    ) -> RowGrid:
        """Derives the grid from the forward arguments.

        Args:
            config: the lattice's config.
            lattice_rows: (L, N) rows of each lattice, -1 for no thread. Each row stands in exactly one lattice.
            thread_ids: (R,) id of each row's thread in its lattice.
            look: whether to find out if the rows are in order; the host then waits for the device once.
        """
        count = thread_ids.shape[0]
        present_LN = lattice_rows >= 0
        places = torch.arange(lattice_rows.numel(), device=lattice_rows.device)
        # The inverse of lattice_rows; absent threads go to a spare last place, so that no device sync is needed.
        target = torch.where(present_LN, lattice_rows, count).flatten()
        place_R = places.new_zeros(count + 1).scatter_(0, target, places)[:count]
        time_K, thread_K = axis_frequencies(config, lattice_rows.device)
        return cls(
            lattice_rows,
            thread_ids,
            present_LN,
            lattice_rows.clamp(min=0),
            place_R,
            look and torch.equal(lattice_rows.flatten(), places),
            time_K,
            (thread_ids[:, None].float() * thread_K)[:, None],
        )

    def of_threads(self, steps_RT: torch.Tensor) -> torch.Tensor:
        """Steps of each row to steps of each thread, (L, N, T); -1 where there is no thread."""
        if self.in_order:
            return steps_RT.view(*self.lattice_rows.shape, -1)
        return steps_RT[self.rows_LN].masked_fill(~self.present_LN[..., None], -1)
