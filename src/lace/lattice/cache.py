"""The lattice cache: what the threads of each lattice have written so far, time-major in preallocated buffers.

Shape letters: L lattices, N threads of a lattice, S steps, K dimensions of a head.
"""

from __future__ import annotations

import torch

from lace.lattice.config import LatticeConfig


class LatticeCache:
    """Keys and values of every grafted layer, shared by all query heads. Slot s holds the entries of step s.

    All lattices of a cache advance in lock-step: a forward pass writes steps `length`..`length + T - 1`. Entries are
    marked as written per thread, so a thread that has finished stays readable and one that never wrote is not.

    Args:
        config: the lattice's config.
        num_layers: grafted layers.
        lattices, threads, max_steps: the sizes L, N and S.
        swapped: each lattice reads the next one's entries and the last one the first's, none its own. A control: if
            the answers are as good then, what threads read of each other does not matter.
    """

    def __init__(
        self,
        config: LatticeConfig,
        num_layers: int,
        lattices: int,
        threads: int,
        max_steps: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        swapped: bool = False,
    ) -> None:
        shape = (num_layers, lattices, max_steps, threads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.steps_LSN = torch.full((lattices, max_steps, threads), -1, device=device)
        """Step of each entry, -1 where nothing was written."""
        self.source_L = torch.arange(lattices, device=device).roll(-1) if swapped else None
        """Whose entries each lattice reads; None where each reads its own."""
        self.length = 0
        """Steps so far, those of the running forward pass included."""

    def advance(self, steps_LNT: torch.Tensor) -> tuple[slice, torch.Tensor]:
        """Makes room for the T steps of a forward pass and marks the entries that it will write.

        Returns:
            The slots of these steps, and the steps of all entries that each lattice may read, (L, S, N).

        Raises:
            ValueError: if they do not fit.
        """
        start, end = self.length, self.length + steps_LNT.shape[2]
        if end > self.steps_LSN.shape[1]:
            raise ValueError(f"the lattice cache holds {self.steps_LSN.shape[1]} steps, not {end}")
        self.steps_LSN[:, start:end] = steps_LNT.transpose(1, 2)
        self.length = end
        return slice(start, end), self._as_read(self.steps_LSN[:, :end])

    def update(
        self, layer: int, slots: slice, keys_LTNK: torch.Tensor, values_LTNK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one layer's new entries; returns what `read` does."""
        self.keys[layer, :, slots] = keys_LTNK
        self.values[layer, :, slots] = values_LTNK
        return self.read(layer, slots)

    def read(self, layer: int, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's keys and values up to the end of `slots`, as each lattice may read them, both (L, S, N, K)."""
        return self._as_read(self.keys[layer, :, : slots.stop]), self._as_read(self.values[layer, :, : slots.stop])

    def _as_read(self, entries_LS: torch.Tensor) -> torch.Tensor:
        return entries_LS if self.source_L is None else entries_LS[self.source_L]

    def keep_lattices(self, index_L: torch.Tensor) -> None:
        """Keeps only the lattices at `index_L`, in that order; not of a swapped cache, where others may read them."""
        assert self.source_L is None
        self.keys, self.values = self.keys[:, index_L], self.values[:, index_L]
        self.steps_LSN = self.steps_LSN[index_L]
