"""Silences heads of a lattice layer: what they read is thrown away, to see what the threads lose by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lace.lattice.attention import LatticeAttention


@contextmanager
def silenced(lattice: LatticeAttention, heads: Sequence[int]) -> Iterator[None]:
    """Within the block the layer adds nothing of what these heads read; afterwards its weights are what they were."""
    weight_DHK = lattice.up_proj.weight.data.unflatten(1, (lattice.config.num_heads, -1))
    kept_DHK = weight_DHK.clone()
    try:
        weight_DHK[:, list(heads)] = 0
        yield
    finally:
        weight_DHK.copy_(kept_DHK)
