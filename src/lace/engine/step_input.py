"""What a step of decoding is given, whichever way it goes (`lace.engine.decode_step`).

Shape letters: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache

from lace.lattice.attention import ThreadLayout
from lace.lattice.graft import SidePath


class StepInput(NamedTuple):
    """One token of every row."""

    tokens_R: torch.Tensor
    positions_R: torch.Tensor
    cache: Cache
    """Whose layers take the new keys and values, and give back those to read."""
    mask: torch.Tensor | None
    """(R, C) 0 for the columns before the row's own, 1 for these; or (R, 1, 1, C) what is added to their scores."""
    layout: dict[str, Any]
    """The forward arguments of the thread layout, see `ThreadLayout.build`, and `lattice_cache`; none to leave the
    lattice off."""

    def thread_layout(self, lattices: Sequence[SidePath]) -> ThreadLayout | None:
        """Made of the arguments, which the lattice cache counts as a step; None where no lattice is read."""
        if not self.layout or not any(lattice.enabled for lattice in lattices):
            return None
        given = {name: value for name, value in self.layout.items() if name != "lattice_cache"}
        return ThreadLayout.build(lattices[0].config, **given, cache=self.layout["lattice_cache"])
