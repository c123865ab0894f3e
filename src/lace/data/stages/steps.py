"""Splits each path into steps and compresses it to the budget of a thread, counted in the student's tokens."""

from __future__ import annotations

import re
from decimal import Decimal

from lace.data.pipeline.context import Context
from lace.data.pipeline.duplicates import UNSPACED
from lace.data.pipeline.gather import gather
from lace.data.pipeline.item import Item, Path, Rejection
from lace.data.pipeline.replies import Steps
from lace.data.pipeline.text import one_line, read_spelled, tidy
from lace.data.stages.solutions import refuse_tags

TOKENS_PER_WORD = 1.5
"""What the teacher is told in words is counted in tokens."""

_JOINED = rf"{UNSPACED}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uac00-\ud7af"
"""Scripts that write words side by side (Chinese, kana, Thai, Lao, Burmese, Khmer) or hang particles on them (Hangul):
an answer in them, or beside them, need not stand between spaces."""
_APART = rf"[^\W{_JOINED}]"
_NUMBER = re.compile(rf"(?<!{_APART})(?<!\.)[-\N{{MINUS SIGN}}]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?!\d)")


def states(text: str, answer: str) -> bool:
    """Whether a text has the answer in it: a number by its value, anything else word by word."""
    if _NUMBER.fullmatch(answer):
        return _value(answer) in map(_value, _NUMBER.findall(text))
    answer = _plain(answer)
    before, behind = (bool(re.match(f"[{_JOINED}]", edge)) for edge in (answer[:1], answer[-1:]))
    pattern = ("" if before else f"(?<!{_APART})") + re.escape(answer) + ("" if behind else f"(?!{_APART})")
    return re.search(pattern, _plain(text)) is not None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("\N{MINUS SIGN}", "-"))


def _plain(text: str) -> str:
    return " ".join(read_spelled(text).split()).casefold()


def _line(step: str) -> str:
    """A step in one line, without blank ones."""
    return one_line("\n".join(line for line in tidy(step).split("\n") if line))


async def steps(item: Item, context: Context) -> Item:
    """Splits all paths.

    Raises:
        Rejection: if one of them cannot be split, ends at another answer, or cannot be brought under the budget.
    """
    paths = await gather(_split(item, path, turn, context) for turn, path in enumerate(item.paths))
    return item.model_copy(update={"paths": tuple(paths)})


async def _split(item: Item, path: Path, turn: int, context: Context) -> Path:
    config = context.config.steps
    literal = _NUMBER.fullmatch(path.answer) or states(path.text, path.answer)  # a formula may be written otherwise

    def usable(reply: Steps) -> list[str]:
        lines = [_line(step) for step in reply.steps]
        if not 1 <= len(lines) <= config.max_steps:
            raise Rejection("wrong count", f"{len(lines)} steps, not 1 to {config.max_steps}")
        if not all(lines):
            raise Rejection("empty", "a step has no text")
        for line in lines:
            refuse_tags(line)
        if literal and not states(lines[-1], path.answer):
            raise Rejection("answer not in last step", f"{path.answer!r} in {lines[-1][:200]!r}")
        return lines

    again = ""
    for attempt in range(context.config.asks):
        values = {
            "question": item.question.text,
            "solution": path.text,
            "answer": path.answer,
            "max_steps": str(config.max_steps),
            "max_words": str(int(config.max_tokens / TOKENS_PER_WORD)),
            "again": again,
        }
        lines = await context.ask(item, "steps", Steps, values, usable, turn=turn + attempt * len(item.paths))
        length = sum(context.tokens(f"\n{line}") for line in lines)
        if length <= config.max_tokens:
            return path.model_copy(update={"steps": tuple(lines)})
        again = f" An earlier version was {length / config.max_tokens:.1f} times too long; shorten far more."
    raise Rejection("over budget", f"{length} tokens, more than {config.max_tokens}")
