"""Memory in large pages, for weights that compiled steps read from end to end.

In pages of 4 KB a processor looks up an address every 64 lines, and guesses no further ahead than to the end of a page.
Linux gives pages of 2 MB to who asks for them, where `/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` or
`always`.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from threading import Lock

import torch

PAGE = 2 << 20
BLOCK = 32 << 20
"""Bytes that are asked for at once, since matrices may be smaller than a page; pages never written cost nothing."""
ALIGNED = 64
"""Bytes: a line of the processor's cache, and a vector of compiled steps."""


class _Block:
    """Memory that is handed out from its beginning; it lives as long as a tensor in it."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.at = -torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr() % PAGE
        self.end = self.at + size

    def take(self, like: torch.Tensor) -> torch.Tensor:
        taken = torch.frombuffer(self.memory, dtype=like.dtype, count=like.numel(), offset=self.at)
        self.at += -(-like.nbytes // ALIGNED) * ALIGNED
        return taken.view(like.shape)


_lock = Lock()
_latest: _Block | None = None


def in_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a tensor, in large pages where the system has them."""
    global _latest
    if not hasattr(mmap, "MADV_HUGEPAGE") or tensor.device.type != "cpu" or not tensor.numel():
        return tensor.contiguous()
    with suppress(OSError), _lock:
        if _latest is None or _latest.at + tensor.nbytes > _latest.end:
            _latest = _Block(max(BLOCK, tensor.nbytes))
        return _latest.take(tensor).copy_(tensor.detach())
    return tensor.contiguous()
