"""Keeps the questions that the base model solves sometimes: neither hopeless nor done already."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from lace.data.pipeline.context import Context
from lace.data.pipeline.gather import gather
from lace.data.pipeline.item import Item, Rejection

_ANSWER = re.compile(r"answer:[ \t]*(.+?)[ \t]*(?=\[\[|\n|$)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")


def read_answer(text: str) -> str:
    """What follows the last `answer:`, else what stands in the last box; empty if there is neither."""
    found = _ANSWER.findall(text) or _BOXED.findall(text)
    return str(found[-1]) if found else ""


async def pass_rate(item: Item, context: Context) -> Item:
    """Measures how often the base model is right. A sample that fails, refused or beyond the verifier, is not right.

    Raises:
        Rejection: if that is not in the range of the config, or if every sample fails.
    """
    config, failed = context.config.pass_rate, list[Rejection]()

    async def right(sample: Awaitable[str]) -> bool:
        try:
            return await context.check(item.question, read_answer(await sample))
        except Rejection as rejection:
            failed.append(rejection)
            context.unusable[rejection.reason] += 1
            return False

    if context.resources.sampler is not None:
        samples: list[Awaitable[str]] = [_given(text) for text in await context.sample_here(item, config.samples)]
    else:
        samples = [context.sample(item, turn) for turn in range(config.samples)]
    verdicts = await gather(map(right, samples))
    if len(failed) == len(verdicts):
        raise failed[0]
    rate = sum(verdicts) / len(verdicts)
    if rate <= config.above:
        raise Rejection("solved too rarely", f"pass rate {rate:.3g}")
    if rate > config.up_to:
        raise Rejection("solved too often", f"pass rate {rate:.3g}")
    return item.model_copy(update={"pass_rate": rate})


async def _given(text: str) -> str:
    return text
