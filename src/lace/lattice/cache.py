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
    ) -> None:
        shape = (num_layers, lattices, max_steps, threads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.steps_LSN = torch.full((lattices, max_steps, threads), -1, device=device)
        """Step of each entry, -1 where nothing was written."""
        self.length = 0
        """Steps so far, those of the running forward pass included."""

    def advance(self, steps_LNT: torch.Tensor) -> slice:
        """Makes room for the T steps of a forward pass and marks the entries that it will write.

        Returns:
            The slots of these steps.

        Raises:
            ValueError: if they do not fit.
        """
        start, end = self.length, self.length + steps_LNT.shape[2]
        if end > self.steps_LSN.shape[1]:
            raise ValueError(f"the lattice cache holds {self.steps_LSN.shape[1]} steps, not {end}")
        self.steps_LSN[:, start:end] = steps_LNT.transpose(1, 2)
        self.length = end
        return slice(start, end)

    def update(
        self, layer: int, slots: slice, keys_LTNK: torch.Tensor, values_LTNK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one layer's new entries; returns its keys and values up to them, both (L, S, N, K) views."""
        self.keys[layer, :, slots] = keys_LTNK
        self.values[layer, :, slots] = values_LTNK
        return self.keys[layer, :, : slots.stop], self.values[layer, :, : slots.stop]

    def keep_lattices(self, index_L: torch.Tensor) -> None:
        """Keeps only the lattices at `index_L`, in that order."""
        self.keys, self.values = self.keys[:, index_L], self.values[:, index_L]
        self.steps_LSN = self.steps_LSN[index_L]

    def bytes_per_token(self) -> int:
        """Bytes that one token of one thread takes over all grafted layers."""
        return 2 * self.keys.shape[0] * self.keys.shape[-1] * self.keys.element_size()
