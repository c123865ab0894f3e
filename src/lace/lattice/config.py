"""The shape of a lattice: which layers carry the side path, how wide it is, and who may read whom."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

Kind = Literal["lattice", "mlp"]
Visibility = Literal["strict", "causal", "same_step"]
VISIBILITIES: tuple[Visibility, ...] = ("strict", "causal", "same_step")
CONFIG_NAME = "lattice_config.json"
MAX_THREADS = 256
"""Threads of one prompt that may be asked for, far above what any model has been trained on. All of them take each step
together, so that many more would run for hours and fill the memory before a first word."""


def check_threads(threads: int) -> None:
    """Raises ValueError, one line, for a number of threads that cannot be asked for."""
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must be between 1 and {MAX_THREADS}, not {threads}")


@dataclass(frozen=True)
class LatticeConfig:
    """Hyper-parameters of the cross-thread side path.

    Raises:
        ValueError: one line that names the field and what it may be.
    """

    kind: Kind = "lattice"
    """`lattice`: threads read each other. `mlp`: a control as large that exchanges nothing (`mlp_control.py`)."""
    layers: str | tuple[int, ...] = "middle-every-other"
    """Decoder layers that get a lattice: from the middle layer on, every other one (the paper's choice), or a list."""
    low_dim: int = 128
    """Width of the down-projection that queries, keys, values and gates are made from."""
    num_heads: int = 4
    """Query heads; keys and values are shared by all of them."""
    time_dims: int = 48
    """Rotary dimensions of a head that turn with the generated step (`d_t` in the paper)."""
    thread_dims: int = 16
    """Rotary dimensions of a head that turn with the thread id (`d_b` in the paper); 0: ids are not encoded."""
    visibility: Visibility = "strict"
    """Entries a query at step t reads: `strict` s < t, `causal` s <= t, `same_step` s == t (no memory)."""
    read_self: bool = False
    """Whether a thread also reads its own entries through the lattice."""
    horizon: int = 0
    """How many of the newest steps that `visibility` allows are read, so that the cost of a step no longer grows with
    the length; 0 for all. May be set for a model trained without one."""
    gate: Literal["head", "none"] = "head"
    """`head`: each lattice head is scaled by a sigmoid of the input; `none`: not gated."""
    max_thread_id: int = 32
    """Thread ids (also the labels shown to the model) are drawn from 1..max_thread_id."""
    time_theta: float = 10_000.0
    """Rotary base of the time dimensions."""
    thread_theta: float = 100.0
    """Rotary base of the thread dimensions; small, since ids are few."""
    opening: str = ""
    """Text that every thread begins with, e.g. `Thread {label}:`; identity must be in the content to be quotable.
    Empty for a graft that has not been trained on labelled threads."""

    @property
    def head_dim(self) -> int:
        return self.time_dims + self.thread_dims

    def __post_init__(self) -> None:
        if self.kind not in ("lattice", "mlp"):
            raise ValueError(f"kind must be 'lattice' or 'mlp', not {self.kind!r}")
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        numbered = isinstance(self.layers, tuple) and all(isinstance(index, int) for index in self.layers)
        if not numbered and self.layers != "middle-every-other":
            raise ValueError(f"layers must be 'middle-every-other' or a list of layer numbers, not {self.layers!r}")
        if self.layers == () or (isinstance(self.layers, tuple) and len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"layers must be distinct and at least one, not {list(self.layers)}")
        for name in ("low_dim", "num_heads", "time_dims", "max_thread_id"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.horizon < 0:
            raise ValueError(f"horizon must be 0 (all steps) or more, not {self.horizon}")
        if self.thread_dims < 0 or self.time_dims % 2 or self.thread_dims % 2:
            raise ValueError(f"time_dims and thread_dims must be even, not {self.time_dims} and {self.thread_dims}")
        if self.visibility not in VISIBILITIES:
            raise ValueError(f"visibility must be one of {', '.join(VISIBILITIES)}, not {self.visibility!r}")
        if self.gate not in ("head", "none"):
            raise ValueError(f"gate must be 'head' or 'none', not {self.gate!r}")
        if self.opening and re.findall(r"{.*?}|[{}]", self.opening) != ["{label}"]:
            raise ValueError(f"opening must hold {{label}} once and no other brace: {self.opening!r}")

    def layer_indices(self, num_layers: int) -> list[int]:
        """The grafted layers of a decoder with `num_layers` layers, in order.

        Raises:
            ValueError: if a listed layer does not exist.
        """
        if isinstance(self.layers, str):
            return list(range(num_layers // 2, num_layers, 2))
        if bad := [i for i in self.layers if not 0 <= i < num_layers]:
            raise ValueError(f"layers {bad} do not exist: the decoder has layers 0..{num_layers - 1}")
        return sorted(self.layers)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatticeConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for a key that is no field, or a value of another type than the field's.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown lattice settings {unknown}; known are {sorted(known)}")
        for name, value in values.items():
            kind = type(getattr(cls, name))
            if name != "layers" and not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
        return cls(**values)

    def save(self, directory: str | Path) -> None:
        """Writes `lattice_config.json` into an existing directory."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(directory) / CONFIG_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> LatticeConfig:
        """Reads `lattice_config.json`.

        Raises:
            ValueError: if it is not valid JSON or holds unknown settings.
            FileNotFoundError: if there is none.
        """
        path = Path(directory) / CONFIG_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no JSON object")
        return cls.from_dict(values)
