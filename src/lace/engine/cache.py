"""The main key-value cache of the engine: one preallocated buffer per layer, written in place.

Shape letters: P prompts, R rows, C columns (padded prompt and generated tokens), G key-value heads, K head dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer


class RowLayer(CacheLayerMixin):
    """Keys and values (R, G, C, K) of one layer, of which `columns` are written and the first `rows` still live."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(
        self, prompt_keys: torch.Tensor, prompt_values: torch.Tensor, rows: torch.Tensor, columns: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.columns = len(rows), prompt_keys.shape[2]
        self.keys = self._spread(prompt_keys, rows, columns)
        self.values = self._spread(prompt_values, rows, columns)
        self.live_keys, self.live_values = self.keys, self.values
        self.is_initialized = True

    @staticmethod
    def _spread(prompt_PGCK: torch.Tensor, rows: torch.Tensor, columns: int) -> torch.Tensor:
        _, heads, used, dim = prompt_PGCK.shape
        buffer = prompt_PGCK.new_zeros(len(rows), heads, columns, dim)
        buffer[:, :, :used] = prompt_PGCK[rows]
        return buffer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("the layer is filled from a prefill")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, more = self.columns, key_states.shape[2]
        self.columns = start + more
        self.live_keys.narrow(2, start, more).copy_(key_states)
        self.live_values.narrow(2, start, more).copy_(value_states)
        return self.live_keys.narrow(2, 0, self.columns), self.live_values.narrow(2, 0, self.columns)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    def keep(self, index: torch.Tensor) -> None:
        """Moves the rows at the rising `index` to the front; the rest is free."""
        self.rows = len(index)
        for buffer in (self.keys, self.values):
            buffer[: self.rows, :, : self.columns] = buffer[index, :, : self.columns]
        self.live_keys, self.live_values = self.keys[: self.rows], self.values[: self.rows]


class RowCache(Cache):
    """The prompts' caches, fanned out once to all their threads, with room for what these will write.

    Args:
        prefill: the cache of a forward pass over the P prompts, every layer of it with full-length keys and values.
        rows: (R,) the prompt of each row.
        columns: C, the room of each row.
    """

    def __init__(self, prefill: Cache, rows: torch.Tensor, columns: int) -> None:
        self.row_layers = []
        for layer in prefill.layers:
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            self.row_layers.append(RowLayer(layer.keys, layer.values, rows, columns))
        super().__init__(layers=list(self.row_layers))

    @property
    def next_column(self) -> tuple[int, int]:
        """The first column that is read, and the one that is written next, in every layer."""
        return 0, self.row_layers[0].columns

    def advance(self) -> None:
        """Counts a column that was written elsewhere, see `lace.engine.static_step` and `native_decoder`."""
        for layer in self.row_layers:
            layer.columns += 1

    def keep(self, index: torch.Tensor) -> None:
        """Frees all rows but those at the rising `index`, which become rows 0, 1, …"""
        for layer in self.row_layers:
            layer.keep(index)
