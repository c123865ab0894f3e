"""The lattice cache: what the threads of each lattice have written so far, time-major in preallocated buffers.

One buffer holds keys and values side by side, and before the first step a slot of null entries, so that a step writes
one place and reads one contiguous piece. Beside it grows the mask of who may read what: an entry that can be read stays
readable, so whoever asks for the mask adds the entries that have come since, and nothing else.

Shape letters: Y grafted layers, L lattices, N threads of a lattice, S steps, T steps of a pass, K dimensions of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lace.lattice.config import LatticeConfig
from lace.lattice.grid import RowGrid

NOTHING_BUT_NULL = 1e5
"""Added to the score of the null entry, it leaves exactly nothing of the others."""


class DecodingWeights(NamedTuple):
    """Weights of one layer, laid out for decoding with few operators; see `LatticeAttention.decoding_weights`."""

    down_DY: torch.Tensor
    norm_Y: torch.Tensor
    proj_ZX: torch.Tensor
    up_XD: torch.Tensor


class LatticeCache:
    """Keys and values of every grafted layer, shared by all query heads. Slot s holds the entries of step s.

    All lattices of a cache advance in lock-step: a forward pass writes steps `length`..`length + T - 1`. Entries are
    marked as written per thread, so a thread that has finished stays readable and one that never wrote is not. A cache
    belongs to the weights that have written it: whoever changes them makes a new one.

    Args:
        config: the lattice's config.
        null_keys_YK: the learned null key of each layer; its dtype and device are the cache's.
        lattices, threads, max_steps: the sizes L, N and S.
        swapped: each lattice reads the next one's entries and the last one the first's, none its own. A control: if
            the answers are as good then, what threads read of each other does not matter.
    """

    def __init__(
        self,
        config: LatticeConfig,
        null_keys_YK: torch.Tensor,
        lattices: int,
        threads: int,
        max_steps: int,
        *,
        swapped: bool = False,
    ) -> None:
        self.config, self.null_keys_YK = config, null_keys_YK.detach()
        self._allocate(lattices, threads, max_steps)
        self.source_L = torch.arange(lattices, device=null_keys_YK.device).roll(-1) if swapped else None
        """Whose entries each lattice reads; None where each reads its own."""
        self.start = 0
        """Slot at which the running forward pass begins."""
        self.length = 0
        """Steps so far, those of the running forward pass included."""
        self.grid: RowGrid | None = None
        """Of the last pass."""
        self.weights: dict[int, DecodingWeights] = {}
        """By the layer's place among the grafted ones."""
        self.native_layers: dict[int, Any] = {}
        """The same as compiled code takes them, see `lace.lattice.native`."""
        self.native_rows: Any = None
        """Buffers and rows of the last pass, likewise."""
        self._write_null_slot()

    def _allocate(self, lattices: int, threads: int, steps: int) -> None:
        layers, dim = self.null_keys_YK.shape
        new = self.null_keys_YK
        self.entries = new.new_empty(layers, lattices, 1 + steps, threads, 2 * dim)
        """Keys, then values; slot s stands at 1 + s, and before the first slot that is read stand the null entries."""
        self.steps_LSN = torch.full((lattices, steps, threads), -1, device=new.device)
        """Step of each entry, -1 where nothing was written."""
        self.added_LNSN = new.new_empty(lattices, threads, 1 + steps, threads)
        """What is added to the scores of a thread (N) for each entry (S, N): 0 if it may be read, else -inf."""
        self.masked = 0
        """Slot before which `added_LNSN` says so."""
        self._never = new.new_tensor(-torch.inf)
        between_NN = new.new_zeros(threads, threads)
        self._between_NN = between_NN if self.config.read_self else between_NN.fill_diagonal_(-torch.inf)

    @property
    def written(self) -> torch.Tensor:
        """Keys and values of all slots, (Y, L, S, N, 2 K), a view."""
        return self.entries[:, :, 1:]

    @property
    def keys(self) -> torch.Tensor:
        """(Y, L, S, N, K), a view."""
        return self.written[..., : self.null_keys_YK.shape[1]]

    @property
    def values(self) -> torch.Tensor:
        """(Y, L, S, N, K), a view."""
        return self.written[..., self.null_keys_YK.shape[1] :]

    # --- which part of the buffers is in use --------------------------------------------------------------------

    @property
    def starts(self) -> list[int] | None:
        """The slot of each lattice's first step; None where only the device knows which slot is written."""
        return [0] * self.steps_LSN.shape[0]

    @property
    def first(self) -> int:
        """The first slot that is read."""
        return self._within_horizon(0, self.start)

    def _within_horizon(self, first: int, start: int) -> int:
        """The first slot that a pass beginning at `start` reads, if there were others from `first` on."""
        horizon = self.config.horizon
        newest = start - 1 if self.config.visibility == "strict" else start
        return max(first, newest + 1 - horizon) if horizon else first

    def _box(self, start: int, stop: int) -> tuple[slice, slice, slice]:
        """Lattices, places from `start` to `stop`, and threads."""
        return slice(None), slice(start, stop), slice(None)

    def _write_null_slot(self) -> None:
        """Everybody reads the first null entry and no other; its value is zero. It stands where an entry was that is
        read no more."""
        lattices, place, threads = self._box(self.first, self.first + 1)
        dim = self.null_keys_YK.shape[1]
        self.entries[:, lattices, place, threads, :dim] = self.null_keys_YK[:, None, None, None]
        self.entries[:, lattices, place, threads, dim:] = 0
        self.added_LNSN[lattices, threads, place, threads] = -torch.inf
        self.added_LNSN[lattices, threads, place, :1] = 0

    def _added(self, unwritten_LTN: torch.Tensor) -> torch.Tensor:
        threads = unwritten_LTN.shape[2]
        between_NN = self._between_NN[:threads, :threads]
        return torch.where(unwritten_LTN[:, None], self._never, between_NN[:, None])

    def _mark(self, slots: slice, steps_LNT: torch.Tensor) -> None:
        self.steps_LSN[self._box(slots.start, slots.stop)] = steps_LNT.transpose(1, 2)

    def _mask(self, stop: int) -> None:
        """Completes the mask up to slot `stop`; where the null entries stand now, it is theirs."""
        start = max(self.masked, self.first)
        if start < stop:
            lattices, places, threads = self._box(1 + start, 1 + stop)
            unwritten_LSN = self.steps_LSN[self._box(start, stop)] < 0
            self.added_LNSN[lattices, threads, places, threads] = self._added(unwritten_LSN)
            self.masked = stop

    # --- a forward pass -----------------------------------------------------------------------------------------

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
        self._mark(slice(start, end), steps_LNT)
        before, self.start, self.length = self.first, start, end
        if self.first > before:
            self._write_null_slot()
        return slice(start, end)

    def write(self, layer: int, slots: slice, entries_LTNX: torch.Tensor) -> None:
        """Writes one layer's new keys and values, side by side."""
        self.entries[(layer, *self._box(1 + slots.start, 1 + slots.stop))] = entries_LTNX

    def update(
        self,
        layer: int,
        slots: slice,
        keys_LTNK: torch.Tensor,
        values_LTNK: torch.Tensor,
        unwritten_LTN: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one layer's new entries; returns what `read` does."""
        entries_LTNX = torch.cat((keys_LTNK, values_LTNK), dim=-1)
        # What is given for a thread that is not there is the entry of some row of another lattice.
        self.write(layer, slots, entries_LTNX.masked_fill(unwritten_LTN[..., None], 0))
        return self.read(layer, slots)

    def read(self, layer: int, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's keys and values up to the end of `slots`, as each lattice may read them, both (L, S, N, K)."""
        entries_LSNX = self._as_read(self.entries[(layer, *self._box(1 + self.first, 1 + slots.stop))])
        keys_LSNK, values_LSNK = entries_LSNX.chunk(2, dim=-1)
        return keys_LSNK, values_LSNK

    def steps_read(self, slots: slice) -> torch.Tensor:
        """Steps of the entries that `read` returns, (L, S, N)."""
        return self._as_read(self.steps_LSN[self._box(self.first, slots.stop)])

    def read_with_null(self, stop: int) -> torch.Tensor:
        """The null slot and the entries before slot `stop`, keys and values side by side, (Y, L, S, N, 2 K), a view."""
        assert self.source_L is None
        return self.entries[(slice(None), *self._box(self.first, 1 + stop))]

    def added_to_scores(self, stop: int, unwritten_LTN: torch.Tensor) -> torch.Tensor:
        """(L, 1, N, E) for the entries of `read_with_null`, in a pass of one step; threads that write nothing in it
        read nothing either."""
        self._mask(stop)
        lattices, places, threads = self._box(self.first, 1 + stop)
        added_LNSN = self.added_LNSN[lattices, threads, places, threads]
        torch.mul(unwritten_LTN[:, 0], NOTHING_BUT_NULL, out=added_LNSN[:, :, 0, 0])
        return added_LNSN.flatten(2)[:, None]

    def _as_read(self, entries_L: torch.Tensor) -> torch.Tensor:
        return entries_L if self.source_L is None else entries_L[self.source_L]

    def keep_lattices(self, index_L: torch.Tensor) -> None:
        """Keeps only the lattices at `index_L`, in that order; not of a swapped cache, where others may read them."""
        assert self.source_L is None
        self.entries, self.added_LNSN = self.entries[:, index_L], self.added_LNSN[index_L]
        self.steps_LSN = self.steps_LSN[index_L]
