"""Whole weights of a model that FSDP2 has spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within the block every process holds all weights, and runs as many forward passes as it likes without waiting for
    the others. FSDP2 gathers the weights of a layer when all processes reach it together, but the lattices that they
    sample differ in length. A model that is not sharded is left as it is."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(True, recurse=False)
