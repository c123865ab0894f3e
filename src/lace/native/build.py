"""C that is compiled where it runs, for one processor: the steps of decoding, which are too short for operators.

A source is compiled at its first use by the machine's compiler, for its processor, and kept in the user's cache folder.
Without a compiler, on another device, or with `LACE_NATIVE=0` in the environment, who calls goes by operators, which
are the reference.
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
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lace.native.large_pages import in_large_pages

SWITCH = "LACE_NATIVE"
"""Environment variable; 0 is off."""
HEADER = Path(__file__).with_name("lanes.h")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "--param=avoid-fma-max-bits=0", "-std=gnu11", "-fPIC", "-shared")
"""For some processors gcc multiplies and adds in one instruction here and in two there; by the parameter always in one,
so that a row gets the same bits everywhere."""
OPENMP = "-fopenmp"
"""The pool of threads is torch's: it loads its runtime for all (RTLD_GLOBAL), so that our calls go there as well."""
PATIENCE = 120
"""Seconds for the compiler, which takes less than one."""
LANES = 16
"""Columns of a weight that lie side by side, as in the header."""


class Source(NamedTuple):
    """Of a function of the same name, which takes so many pointers and returns 0 for success."""

    path: Path
    pointers: int


class Kernel(NamedTuple):
    """A compiled function."""

    call: Callable[..., int]
    shared: bool
    """Whether it can use several threads of the processor."""

    @property
    def address(self) -> int | None:
        """Of the function, for other compiled code."""
        return ctypes.cast(self.call, ctypes.c_void_p).value  # type: ignore[arg-type]


# --- building ---------------------------------------------------------------------------------------------------------


@cache
def kernel(source: Source) -> Kernel | None:
    """Compiles the function of a source, if no earlier process has, and loads it; None where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    folder = _cache_folder() if compiler else None
    if compiler is None or folder is None:
        return None
    for flags in ((*FLAGS, OPENMP), FLAGS):
        with suppress(OSError, subprocess.SubprocessError):
            library = ctypes.CDLL(str(_compiled(source.path, compiler, flags, folder)))
            function = getattr(library, source.path.stem)
            function.argtypes, function.restype = [ctypes.c_void_p] * source.pointers, ctypes.c_int
            return Kernel(function, OPENMP in flags)
    return None


def _compiled(source: Path, compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """The library, whole at once for processes side by side.

    Raises:
        OSError, subprocess.SubprocessError: if it cannot be made.
    """
    text = source.read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=PATIENCE, check=True).stdout
    made_of = (text, HEADER.read_bytes(), " ".join((compiler, *flags)).encode(), version, _processor().encode())
    name = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:24]
    path = folder / f"{source.stem}-{name}.so"
    if not path.exists():
        handle, begun = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            command = [compiler, *flags, "-I", str(HEADER.parent), "-o", begun, "-x", "c", "-", "-lm"]
            subprocess.run(command, input=text, capture_output=True, timeout=PATIENCE, check=True)
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


def usable(source: Source, device: torch.device) -> Kernel | None:
    """The function of a source, if a step there can go by it."""
    if device.type != "cpu" or os.environ.get(SWITCH) == "0":
        return None
    found = kernel(source)
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


def panels(weight_DO: torch.Tensor, *, in_words: bool = False) -> torch.Tensor:
    """A weight as compiled products take it: (panels, D, LANES), the last panel filled up with zeros.

    Args:
        weight_DO: of D inputs and O outputs.
        in_words: two numbers of the depth lie side by side, (panels, D / 2, LANES, 2), an odd depth filled up likewise.
    """
    at_once = 2 if in_words else 1
    padded_DO = nn.functional.pad(weight_DO, (0, -weight_DO.shape[1] % LANES, 0, -len(weight_DO) % at_once))
    panels_PDLW = padded_DO.view(len(padded_DO) // at_once, at_once, -1, LANES).permute(2, 0, 3, 1)
    return in_large_pages(panels_PDLW if in_words else panels_PDLW.squeeze(-1))
