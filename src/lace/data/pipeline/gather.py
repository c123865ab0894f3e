"""Doing several things of one item at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def gather(works: Iterable[Awaitable[T]]) -> list[T]:
    """All results in order. If some fail, the others are still finished, so that paid calls are kept; then the first
    error is raised."""
    results = await asyncio.gather(*works, return_exceptions=True)
    done: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
