"""A grafted layer's part of a decode step, one call of compiled C (`decode_step.c`) in the place of a dozen operators.

The C is compiled at the first step of a process that can use it, by the machine's compiler, for its processor, and kept
in the user's cache folder. Without a compiler, on another device, in another dtype, or with `LACE_NATIVE=0` in the
environment, `LatticeAttention` goes by its operators, which are the reference.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import POINTER, Structure, byref, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lace.lattice.cache import LatticeCache
from lace.lattice.grid import RowGrid

SWITCH = "LACE_NATIVE"
"""Environment variable; 0 is off."""
SOURCE = Path(__file__).with_name("decode_step.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared")
OPENMP = "-fopenmp"
"""The pool of threads is torch's: it loads its runtime for all (RTLD_GLOBAL), so that our calls go there as well."""
PATIENCE = 120
"""Seconds for the compiler, which takes less than one."""
LANES = 16
"""Columns of a weight that lie side by side, as in the source."""
DTYPES = (torch.float32, torch.bfloat16)


class _Layer(Structure):
    """As in the source."""

    _fields_ = [
        *((name, c_int64) for name in ("width", "low", "heads", "dim", "gated", "bfloat16")),
        ("epsilon", c_double),
        *((name, c_void_p) for name in ("down", "proj", "up", "null_key")),
    ]


class _Step(Structure):
    """As in the source."""

    _fields_ = [
        *((n, c_int64) for n in ("rows", "lattices", "threads", "slot", "stop", "horizon", "read_self", "processors")),
        *((name, c_void_p) for name in ("row_of", "starts", "steps")),
        *((name, c_int64) for name in ("steps_lattice", "steps_slot", "entries_lattice", "entries_slot")),
        *((name, c_void_p) for name in ("cosines", "sines")),
    ]


class Kernel(NamedTuple):
    """The compiled function."""

    call: Callable[..., int]
    shared: bool
    """Whether it can use several threads of the processor."""


# --- building ---------------------------------------------------------------------------------------------------------


@cache
def kernel() -> Kernel | None:
    """Compiles the function, if no earlier process has, and loads it; None where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    folder = _cache_folder() if compiler else None
    if compiler is None or folder is None:
        return None
    for flags in ((*FLAGS, OPENMP), FLAGS):
        with suppress(OSError, subprocess.SubprocessError):
            library = ctypes.CDLL(str(_compiled(compiler, flags, folder)))
            function = library.lattice_decode_step
            function.argtypes, function.restype = [POINTER(_Layer), POINTER(_Step), *[c_void_p] * 3], c_int
            return Kernel(function, OPENMP in flags)
    return None


def _compiled(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """The library, whole at once for processes side by side.

    Raises:
        OSError, subprocess.SubprocessError: if it cannot be made.
    """
    source = SOURCE.read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=PATIENCE, check=True).stdout
    made_of = (source, " ".join((compiler, *flags)).encode(), version, _processor().encode())
    name = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:24]
    path = folder / f"decode_step-{name}.so"
    if not path.exists():
        handle, begun = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            command = [compiler, *flags, "-o", begun, "-x", "c", "-", "-lm"]
            subprocess.run(command, input=source, capture_output=True, timeout=PATIENCE, check=True)
            os.chmod(begun, 0o700)
            os.replace(begun, path)
        finally:
            Path(begun).unlink(missing_ok=True)
    return path


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by machines."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines() if about.exists() else []
    kept = [line for line in lines if line.startswith(("vendor", "cpu family", "model", "flags", "Features", "CPU "))]
    return "\n".join((platform.machine(), platform.processor(), *kept))


def _cache_folder() -> Path | None:
    """The user's folder for compiled code; None if anybody else could put something there."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lace"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve(strict=True)
        return folder if _is_ours(folder) else None
    except (OSError, RuntimeError):
        return None


def _is_ours(folder: Path) -> bool:
    """Whether nobody but this user, and root, can write into a folder or put another in its place."""
    if not hasattr(os, "getuid"):
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    for place in (folder, *folder.parents):
        about = place.stat()
        guarded = place != folder and about.st_mode & stat.S_ISVTX  # there, only owners move what is theirs
        if about.st_uid not in (0, os.getuid()) or (about.st_mode & others and not guarded):
            return False
    return True


# --- using ------------------------------------------------------------------------------------------------------------


def usable(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The function, if a step there can go by it."""
    if device.type != "cpu" or dtype not in DTYPES or os.environ.get(SWITCH) == "0":
        return None
    found = kernel()
    return found if found is not None and (found.shared or torch.get_num_threads() == 1) else None


@contextmanager
def switched_off() -> Iterator[None]:
    """Within the block steps go by operators."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


class NativeLayer:
    """The weights of a grafted layer, in float32 and laid out in panels of columns.

    Args:
        lattice: a `LatticeAttention`.
    """

    @torch.no_grad()
    def __init__(self, lattice: Any) -> None:
        config, null_key = lattice.config, lattice.null_key
        normed_ZX = (lattice.qkvg_proj.weight.float() * lattice.norm.weight.float()).T
        self.kept = [_panels(lattice.down_proj.weight.T), _panels(normed_ZX), _panels(lattice.up_proj.weight.T)]
        self.kept.append(null_key.detach().float().contiguous())
        self.given = byref(
            _Layer(
                lattice.down_proj.in_features,
                config.low_dim,
                config.num_heads,
                config.head_dim,
                config.gate == "head",
                null_key.dtype == torch.bfloat16,
                lattice.norm.eps,
                *(weight.data_ptr() for weight in self.kept),
            )
        )


def _panels(weight_DO: torch.Tensor) -> torch.Tensor:
    """(panels, D, LANES), the last panel filled up with zeros."""
    padded_DO = nn.functional.pad(weight_DO.float(), (0, -weight_DO.shape[1] % LANES))
    return padded_DO.view(len(padded_DO), -1, LANES).transpose(0, 1).contiguous()


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
        step = _Step.from_buffer_copy(rows.step)
        step.slot, step.stop, step.processors = slot, stop, torch.get_num_threads()
        step.cosines, step.sines = cosines.data_ptr(), sines.data_ptr()
        self.given = byref(step)

    def added(self, layer: NativeLayer, index: int, x_RD: torch.Tensor) -> torch.Tensor:
        """The SDPA output and what the threads' reading adds to it, (R, D); writes the entries of the step.

        Args:
            layer: the weights.
            index: the layer's place among the grafted ones.
            x_RD: of the cache's dtype.
        """
        x_RD = x_RD.contiguous()
        out_RD = torch.empty_like(x_RD)
        if self.call(layer.given, self.given, self.entries[index], x_RD.data_ptr(), out_RD.data_ptr()):
            raise MemoryError("no memory for a step of the lattice")
        return out_RD
