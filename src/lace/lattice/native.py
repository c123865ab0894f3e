"""A grafted layer's part of a decode step, one call of compiled C (`lattice_step.c`) in the place of a dozen operators.

Where that cannot be, `LatticeAttention` goes by its operators, which are the reference.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from lace.lattice.cache import LatticeCache
from lace.lattice.grid import RowGrid
from lace.native import build
from lace.native.build import Kernel, Source, panels

SOURCE = Source(Path(__file__).with_name("lattice_step.c"), pointers=5)
DTYPES = (torch.float32, torch.bfloat16)


class _Layer(Structure):
    """As in the source."""

    _fields_ = [
        *((name, c_int64) for name in ("width", "low", "heads", "dim", "gated", "bfloat16")),
        ("epsilon", c_double),
        *((name, c_void_p) for name in ("down", "proj", "up", "norm", "null_key")),
    ]


class _Step(Structure):
    """As in the source."""

    _fields_ = [
        *((n, c_int64) for n in ("rows", "lattices", "threads", "slot", "stop", "horizon", "read_self", "processors")),
        *((name, c_void_p) for name in ("row_of", "starts", "steps")),
        *((name, c_int64) for name in ("steps_lattice", "steps_slot", "entries_lattice", "entries_slot")),
        *((name, c_void_p) for name in ("cosines", "sines")),
    ]


def usable(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The function, if a step there can go by it."""
    return build.usable(SOURCE, device) if dtype in DTYPES else None


class NativeLayer:
    """The weights of a grafted layer, laid out in panels of columns.

    Args:
        lattice: a `LatticeAttention`.
    """

    @torch.no_grad()
    def __init__(self, lattice: Any) -> None:
        config, null_key = lattice.config, lattice.null_key
        in_words = null_key.dtype == torch.bfloat16
        linears = lattice.down_proj, lattice.qkvg_proj, lattice.up_proj
        self.kept = [panels(linear.weight.to(null_key.dtype).T, in_words=in_words) for linear in linears]
        self.kept += [lattice.norm.weight.detach().float().contiguous(), null_key.detach().contiguous()]
        self.layer = _Layer(
            lattice.down_proj.in_features,
            config.low_dim,
            config.num_heads,
            config.head_dim,
            config.gate == "head",
            in_words,
            lattice.norm.eps,
            *(weight.data_ptr() for weight in self.kept),
        )
        """For compiled code."""


class NativeRows:
    """Which rows are which threads, and where their entries lie: the same from step to step, until rows come or go.

    Args:
        cache: whose slots the host knows.
        grid: of its running pass.
    """

    def __init__(self, cache: LatticeCache, grid: RowGrid) -> None:
        lattices, threads = grid.lattice_rows.shape
        starts, steps_LSN, entries = cache.starts, cache.steps_LSN, cache.entries
        assert starts is not None
        self.grid, self.starts, self.steps_LSN, self.entries = grid, list(starts), steps_LSN, entries
        self.count = len(grid.thread_ids)
        self.rows_LN, self.starts_L = grid.lattice_rows.long().contiguous(), (c_int64 * lattices)(*starts)
        # What follows knows no bounds.
        assert all(used <= there for used, there in zip((lattices, threads), steps_LSN.shape[::2], strict=True))
        layer, lattice, place, *inner = entries.stride()
        assert (*inner, steps_LSN.stride(2)) == (entries.shape[-1], 1, 1)
        self.step = _Step(
            rows=self.count,
            lattices=lattices,
            threads=threads,
            horizon=cache.config.horizon,
            read_self=cache.config.read_self,
            row_of=self.rows_LN.data_ptr(),
            starts=ctypes.addressof(self.starts_L),
            steps=steps_LSN.data_ptr(),
            steps_lattice=steps_LSN.stride(0),
            steps_slot=steps_LSN.stride(1),
            entries_lattice=lattice,
            entries_slot=place,
        )
        """Without what differs from step to step."""
        size, begin = entries.element_size(), entries.data_ptr()
        self.layers = [begin + size * (number * layer + place) for number in range(len(entries))]
        """Entries of each layer, behind the null slot."""

    def are_those_of(self, cache: LatticeCache, grid: RowGrid) -> bool:
        """Whether nothing has changed."""
        same = grid is self.grid and cache.entries is self.entries and cache.steps_LSN is self.steps_LSN
        return same and cache.starts == self.starts


class NativeStep:
    """A step of decoding for all layers.

    Args:
        function: see `usable`.
        rows: of the step.
        slot: that it writes.
        stop: slot before which it reads.
        angles: cosine and sine of the rows, both (R, 1, K) in float32.
    """

    def __init__(
        self, function: Kernel, rows: NativeRows, slot: int, stop: int, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        cosines, sines = (angle.contiguous() for angle in angles)
        assert slot < rows.steps_LSN.shape[1]
        assert len(cosines) == rows.count
        assert cosines.dtype == torch.float32
        self.call, self.kept = function.call, (rows, cosines, sines)
        self.dtype, self.entries = rows.entries.dtype, rows.layers
        self.step = _Step.from_buffer_copy(rows.step)
        """For compiled code."""
        self.step.slot, self.step.stop, self.step.processors = slot, stop, torch.get_num_threads()
        self.step.cosines, self.step.sines = cosines.data_ptr(), sines.data_ptr()

    def added(self, layer: NativeLayer, index: int, x_RD: torch.Tensor) -> torch.Tensor:
        """The SDPA output and what the threads' reading adds to it, (R, D); writes the entries of the step.

        Args:
            layer: the weights.
            index: the layer's place among the grafted ones.
            x_RD: of the cache's dtype.
        """
        x_RD = x_RD.contiguous()
        out_RD = torch.empty_like(x_RD)
        given = byref(layer.layer), byref(self.step), self.entries[index]
        if self.call(*given, x_RD.data_ptr(), out_RD.data_ptr()):
            raise MemoryError("no memory for a step of the lattice")
        return out_RD
