"""Caches of a batch that lattices join and leave at any step: a window that rolls over preallocated buffers.

All rows write the same column at the same step, as in a batch that started together. A row that joins is laid so that
its prompt ends where the others are now, and what lies before it is zero and masked:

    row 0   . . . . p p p p t t t t t t |
    row 1   . . . . . . . . p p t t t t |       p prompt, t generated, . zero; the window is first..end
    row 2   . . . . . . . p p p p p t t |
                    first               end

So columns differ as positions do, which sliding windows rest on, and each step writes one contiguous slice. When `end`
meets the end of the buffer, the window moves back to its beginning. The lattice cache rolls likewise, over steps.

Shape letters: R rows, C columns, G key-value heads, L lattices, N threads, S steps, K head dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from lace.lattice.cache import LatticeCache
from lace.lattice.graft import lattice_layers, null_keys


def roomy(length: int) -> int:
    """Columns for entries of that length: a quarter more, so that a window moves back only now and then."""
    return length + length // 4 + 1


@dataclass
class Window:
    """Which part of a buffer is in use: places 0, 1, … and of each place the columns from its start to `end`."""

    columns: int
    end: int = 0
    starts: list[int] = field(default_factory=list)

    @property
    def first(self) -> int:
        return min(self.starts, default=self.end)

    @property
    def span(self) -> slice:
        return slice(self.first, self.end)

    def without(self, gone: set[int]) -> list[int]:
        """Drops places and moves the last ones into the holes. Returns the former place of each place that is left."""
        left = len(self.starts) - len(gone)
        order = list(range(left))
        tails = (place for place in range(left, len(self.starts)) if place not in gone)
        for hole in sorted(gone):
            if hole < left:
                order[hole] = next(tails)
        self.starts = [self.starts[place] for place in order]
        return order

    def slide(self, end: int) -> tuple[slice, slice]:
        """Moves the window so that it ends at `end`. Returns from where to where its content has to be copied."""
        before, by = self.span, end - self.end
        self.end, self.starts = end, [start + by for start in self.starts]
        return before, self.span


class RollingLayer(CacheLayerMixin):
    """Keys and values of one layer, buffers of (R, G, C, K)."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("the layer is filled from prefills")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, first, end = len(self.window.starts), self.window.first, self.window.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.end - self.window.first

    def get_max_length(self) -> int:
        return self.window.columns


class RollingCache(Cache):
    """The main cache. Memory is bounded by `budget`: rows times columns of its buffers are never more.

    Args:
        prefill: the first cache that will join; tells the shapes.
        budget: tokens.
        longest: tokens of the longest row to come.
    """

    def __init__(self, prefill: Cache, budget: int, longest: int) -> None:
        self.budget, self.window = budget, Window(roomy(longest))
        self.rolling_layers = [RollingLayer(self.window) for _ in prefill.layers]
        super().__init__(layers=list(self.rolling_layers))
        for layer, source in zip(self.rolling_layers, prefill.layers, strict=True):
            keys, values = _full_length(source)
            layer.keys, layer.values = self._new_buffer(keys), self._new_buffer(values)

    def _new_buffer(self, like_RGCK: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = like_RGCK.shape
        return like_RGCK.new_empty(self.budget // self.window.columns, heads, self.window.columns, dim)

    def make_room(self, rows: int, longest: int) -> None:
        """Changes the shape of the buffers if `rows` more rows, or rows of `longest` tokens, would not fit."""
        rows += len(self.window.starts)
        if rows <= self.budget // self.window.columns and longest < self.window.columns:
            return
        used = len(self.window.starts)
        self.window.columns = roomy(longest)
        before, after = self.window.slide(self.window.end - self.window.first)
        for layer in self.rolling_layers:
            for name, old in (("keys", layer.keys), ("values", layer.values)):
                new = self._new_buffer(old)
                new[:used, :, after] = old[:used, :, before]
                setattr(layer, name, new)

    def join(self, prefill: Cache, rows: int) -> None:
        """Adds rows behind the others, all with the prompt of `prefill` (one row)."""
        length, old, used = prefill.get_seq_length(), self.window.first, len(self.window.starts)
        if length > self.window.end:
            self._slide(length)
            old = self.window.first
        start, end = self.window.end - length, self.window.end
        self.window.starts += [start] * rows
        for layer, source in zip(self.rolling_layers, prefill.layers, strict=True):
            for buffer, prompt in zip((layer.keys, layer.values), _full_length(source), strict=True):
                buffer[:used, :, start:old] = 0
                buffer[used : used + rows, :, old:start] = 0
                buffer[used : used + rows, :, start:end] = prompt

    def drop(self, gone: set[int]) -> list[int]:
        """Frees rows; returns the former row of each row that is left."""
        columns = self.window.span
        order = self.window.without(gone)
        moved = [row for row, former in enumerate(order) if row != former]
        if moved:
            formers = [order[row] for row in moved]
            for layer in self.rolling_layers:
                for buffer in (layer.keys, layer.values):
                    buffer[moved, :, columns] = buffer[formers, :, columns]
        return order

    @property
    def next_column(self) -> tuple[int, int]:
        """The first column that is read, and the one that is written next, in every layer."""
        return self.window.first, self.window.end

    def advance(self) -> None:
        """Counts the column that a forward pass has written, and sees to it that there is another."""
        self.window.end += 1
        if self.window.end == self.window.columns:
            self._slide(self.window.end - self.window.first)

    def _slide(self, end: int) -> None:
        rows = len(self.window.starts)
        before, after = self.window.slide(end)
        for layer in self.rolling_layers:
            for buffer in (layer.keys, layer.values):
                buffer[:rows, :, after] = buffer[:rows, :, before].clone()


def _full_length(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(layer, DynamicLayer | RollingLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


class RollingLatticeCache(LatticeCache):
    """The lattice cache. Memory is bounded by `budget`: lattices times threads times steps are never more.

    Args:
        model: a grafted one.
        budget: entries.
    """

    def __init__(self, model: PreTrainedModel, budget: int) -> None:
        self.budget, self.window = budget, Window(0)
        self.threads = 0
        """Of the widest lattice now; no more are read."""
        super().__init__(lattice_layers(model)[0].config, null_keys(model), 0, 0, 0)

    @property
    def starts(self) -> list[int]:
        """The slot of each lattice's first step."""
        return self.window.starts

    @property
    def first(self) -> int:
        """The first slot that is read."""
        return self._within_horizon(self.window.first, self.window.end - 1)

    def _box(self, start: int, stop: int) -> tuple[slice, slice, slice]:
        return slice(len(self.window.starts)), slice(start, stop), slice(self.threads)

    def make_room(self, threads: int, longest: int) -> None:
        """Changes the shape of the buffers if one more lattice, `threads` threads or `longest` steps would not fit."""
        used, (lattices, steps, widest) = len(self.window.starts), self.steps_LSN.shape
        if used < lattices and threads <= widest and longest < steps:
            return
        steps, kept = roomy(longest), slice(self.threads)
        before, after = self.window.slide(self.window.end - self.window.first)
        self.window.columns = steps
        old_written, old_steps = self.written, self.steps_LSN
        self._allocate(self.budget // (threads * steps), threads, steps)
        self.written[:, :used, after, kept] = old_written[:, :used, before, kept]
        self.steps_LSN[:used, after, kept] = old_steps[:used, before, kept]
        self._describe_window()

    def join(self, threads: int) -> None:
        """Adds a lattice behind the others; where it will be read, nothing is left of who was there before."""
        place, former, span = len(self.window.starts), self.threads, self.window.span
        self.threads = max(former, threads)
        self._clear(slice(place), span, slice(former, self.threads))
        self._clear(slice(place, place + 1), span, slice(self.threads))
        self.window.starts.append(self.window.end)
        self._describe_window()

    def _clear(self, places: slice, steps: slice, threads: slice) -> None:
        self.written[:, places, steps, threads] = 0
        self.steps_LSN[places, steps, threads] = -1

    def _describe_window(self) -> None:
        """The mask has to be made anew; and the null entries, which stand before the window."""
        self.masked = self.window.first
        self._write_null_slot()

    def drop(self, gone: set[int], threads: int) -> list[int]:
        """Frees places; returns the former place of each that is left, the widest of which has so many threads."""
        span = self.window.span
        order = self.window.without(gone)
        for place, former in enumerate(order):
            if place != former:
                for buffer_LS in (*self.written, self.steps_LSN):
                    buffer_LS[place, span] = buffer_LS[former, span]
        self.threads = threads
        self._describe_window()
        return order

    def advance(self, steps_LNT: torch.Tensor) -> slice:
        """As of any lattice cache; the pass covers one step."""
        window, lattices = self.window, len(self.window.starts)
        if window.end == window.columns:
            before, after = window.slide(window.end - window.first)
            for buffer_LS in (*self.written, self.steps_LSN):
                buffer_LS[:lattices, after] = buffer_LS[:lattices, before].clone()
            self._describe_window()
        slots = slice(window.end, window.end + 1)
        self._mark(slots, steps_LNT)
        oldest = self.first
        window.end += 1
        if self.first > oldest:
            self._write_null_slot()
        return slots
