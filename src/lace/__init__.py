"""LACE: reasoning threads of one prompt that read each other while they decode.

The public surface; everything is imported on first use, so that `import lace` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lace.engine.engine import Engine
    from lace.engine.sampling import SamplingParams
    from lace.lattice.checkpoint import load, save
    from lace.lattice.config import LatticeConfig
    from lace.lattice.graft import graft, lattice_off

__version__ = "0.1.0"
__all__ = ["Engine", "LatticeConfig", "SamplingParams", "graft", "lattice_off", "load", "save"]

_HOMES = {
    "Engine": "lace.engine.engine",
    "SamplingParams": "lace.engine.sampling",
    "LatticeConfig": "lace.lattice.config",
    "graft": "lace.lattice.graft",
    "lattice_off": "lace.lattice.graft",
    "load": "lace.lattice.checkpoint",
    "save": "lace.lattice.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lace' has no attribute {name!r}")
