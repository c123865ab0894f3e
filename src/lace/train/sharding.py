"""Whole weights of a model that FSDP2 has spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


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


def make_whole(model: nn.Module) -> None:
    """Turns the sharded parameters of a trained model into plain ones, in place, so that it is saved like any other. To
    be called by every process; a model that is not sharded is left as it is."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    whole: dict[Any, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        parameters: list[tuple[str, Any]] = list(module.named_parameters(recurse=False))
        for name, shard in parameters:
            if isinstance(shard, DTensor):
                if shard not in whole:
                    whole[shard] = nn.Parameter(shard.detach().full_tensor(), requires_grad=shard.requires_grad)
                setattr(module, name, whole[shard])
