"""Keeps the questions that the base model solves sometimes: neither hopeless nor done already."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from lace.data.pipeline.context import Context
from lace.data.pipeline.gather import gather
from lace.data.pipeline.item import Item, Rejection
from lace.data.pipeline.text import TAG

_ANSWER = re.compile(rf"answer[:\uff1a][ \t]*(.+?)[ \t]*(?={TAG.pattern}|\n|$)", re.IGNORECASE)
_REST = re.compile(rf".*answer[:\uff1a][ \t]*(.*?)(?={TAG.pattern}|$)", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")


def read_answer(text: str, *, lines: bool = False) -> str:
    """What follows the last `answer:`, else what stands in the last box; empty if there is neither.

    Args:
        text: a reply.
        lines: whether an answer has several lines, and so goes on to the end of the reply; marks around code are left
            out.
    """
    if lines and (rest := _REST.match(text)):
        return _FENCE.sub("", rest[1]).strip()
    found = _ANSWER.findall(text) or _BOXED.findall(text)
    return str(found[-1]) if found else ""


async def pass_rate(item: Item, context: Context) -> Item:
    """Measures how often the base model is right. A sample that fails, refused or beyond the verifier, is not right.

    Raises:
        Rejection: if that is not in the range of the config, or if every sample fails.
    """
    config, failed = context.config.pass_rate, list[Rejection]()
    lines = "\n" in (item.question.answer or "")

    async def right(sample: Awaitable[str]) -> bool:
        try:
            return await context.check(item.question, read_answer(await sample, lines=lines))
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
