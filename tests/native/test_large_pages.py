"""Memory in large pages: holds what it is given, apart from all else, and goes when nobody needs it."""

from __future__ import annotations

import gc
import mmap
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lace.native import large_pages
from lace.native.large_pages import ALIGNED, BLOCK, in_large_pages


@pytest.fixture(autouse=True)
def fresh_block() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_pages, "_latest", None)
        yield


def flags(address: int) -> list[str]:
    """What the system was told about the memory there."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            inside = begin <= address < end
        elif inside and name == "VmFlags:":
            return values
    raise AssertionError("no such memory")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_whole_and_apart(dtype: torch.dtype) -> None:
    given = [torch.randn(3, 5, 7).to(dtype).transpose(0, 2), torch.randn(11).to(dtype), torch.randn(2, 2).to(dtype)]
    copies = [in_large_pages(tensor) for tensor in given]
    for copy, tensor in zip(copies, given, strict=True):
        assert copy.is_contiguous()
        assert copy.dtype == dtype
        assert copy.data_ptr() % ALIGNED == 0
        torch.testing.assert_close(copy, tensor, rtol=0, atol=0)
    copies[0].zero_()
    torch.testing.assert_close(copies[1:], given[1:], rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without large pages")
def test_the_system_is_asked_for_large_pages() -> None:
    assert "hg" in flags(in_large_pages(torch.ones(4)).data_ptr())
    assert "hg" in flags(in_large_pages(torch.ones(BLOCK // 4 + 1)).data_ptr())


def test_many_blocks() -> None:
    given = [torch.full((BLOCK // 12,), float(n)) for n in range(7)]
    copies = [in_large_pages(tensor) for tensor in given]
    torch.testing.assert_close(copies, given, rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without large pages")
def test_blocks_go_with_their_tensors() -> None:
    kept = in_large_pages(torch.ones(4))
    assert large_pages._latest is not None
    memory = weakref.ref(large_pages._latest.memory)
    in_large_pages(torch.ones(BLOCK // 4))  # needs another block
    gc.collect()
    assert memory() is not None
    assert kept.sum() == 4
    del kept
    gc.collect()
    assert memory() is None


def test_in_and_outside_of_inference_mode() -> None:
    with torch.inference_mode():
        first = in_large_pages(torch.ones(3))
    second = in_large_pages(torch.nn.Parameter(torch.ones(3)))
    assert not second.requires_grad
    assert torch.equal(first, second)


def test_usual_memory_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(4, 6)
    monkeypatch.setattr(large_pages, "_Block", _refused)
    torch.testing.assert_close(in_large_pages(tensor.T), tensor.T, rtol=0, atol=0)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert in_large_pages(tensor.T).is_contiguous()


def _refused(size: int) -> None:
    raise OSError("no memory")
