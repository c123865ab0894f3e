"""Keeps the questions that the base model solves sometimes: neither hopeless nor done already."""

from __future__ import annotations

import re

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
    """Measures how often the base model is right.

    Raises:
        Rejection: if that is not in the range of the config.
    """
    config, sampler = context.config.pass_rate, context.resources.sampler
    if sampler is not None:
        seed = context.rng(item, "pass rate").getrandbits(31)
        texts = await sampler(item.question.text, config.samples, seed)
        context.seeds[seed] = None
    else:
        texts = await gather(context.sample(item, turn) for turn in range(config.samples))
    right = await gather(context.check(item.question, read_answer(text)) for text in texts)
    rate = sum(right) / len(right)
    if rate <= config.above:
        raise Rejection("solved too rarely", f"pass rate {rate:.3g}")
    if rate > config.up_to:
        raise Rejection("solved too often", f"pass rate {rate:.3g}")
    return item.model_copy(update={"pass_rate": rate})
