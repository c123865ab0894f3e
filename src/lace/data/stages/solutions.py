"""Diverse solutions by sequential sampling: each attempt is told summaries of all before it, and not to repeat them; of
those that came too close to another also to which.

That a path differs from the others is measured, not believed: by word edit distance, and by distance in meaning where
there is a sentence encoder.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from lace.data.pipeline.context import Context
from lace.data.pipeline.item import Item, Path, Rejection
from lace.data.pipeline.replies import Solution
from lace.data.pipeline.text import TAG, one_line, tidy

NEAR_COPY = "near-copy"
"""Of an earlier path of the same question."""
_WORD = re.compile(r"\w+|[^\w\s]")


def edit_distance(first: str, second: str) -> float:
    """Levenshtein distance in words and signs over the length of the longer text, 0..1."""
    return Levenshtein.normalized_distance(_WORD.findall(first), _WORD.findall(second))


def cosine_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Of embeddings of length 1; opposite ones count as unrelated."""
    product = sum(x * y for x, y in zip(first, second, strict=True))
    return min(1.0, max(0.0, 1.0 - product))


def refuse_tags(text: str) -> None:
    """Raises a Rejection for a text that holds a closing tag: only the assembler writes these."""
    if TAG.search(text):
        raise Rejection("tag in text", text[:200])


def _usable(reply: Solution) -> Solution:
    if not all(text.strip() for text in (reply.solution, reply.answer, reply.summary)):
        raise Rejection("empty", "solution, answer or summary has no text")
    for text in (reply.solution, reply.answer):
        refuse_tags(text)
    return reply


def _nearest(distances: list[float]) -> tuple[float, int]:
    """The smallest distance and which it is; as far as can be, if there is none."""
    return min(((distance, n) for n, distance in enumerate(distances)), default=(1.0, 0))


def _told(refused: list[str]) -> str:
    """What the teacher is told of its near-copies, behind the list of paths; nothing if there are none."""
    return "\n\nThese attempts were refused, since they repeat one of those:\n" + "\n".join(refused) if refused else ""


async def solutions(item: Item, context: Context) -> Item:
    """Samples paths until there are as many distinct ones as this question is to have threads.

    Raises:
        Rejection: if there are too few after `max_calls` calls; the reason is that of the last call, if none could be
            used.
    """
    run, config = context.config.run, context.config.solutions
    rng = context.rng(item, "threads")
    wanted = rng.randint(run.min_threads, run.max_threads)
    paths: list[Path] = []
    embeddings: list[Sequence[float]] = []
    refused: list[str] = []
    last: Rejection | None = None
    for turn in range(config.max_calls):
        tried = "\n".join(
            f"{n}. {path.summary} Answer: {one_line(path.answer)}" for n, path in enumerate(paths, start=1)
        )
        values = {"question": item.question.text, "tried": tried or "Nothing yet.", "refused": _told(refused)}
        try:
            reply = await context.ask(item, "solve", Solution, values, _usable, turn=turn)
        except Rejection as rejection:
            last = rejection
            continue
        summary = " ".join(reply.summary.split())
        distance, nearest = _nearest([edit_distance(reply.solution, path.text) for path in paths])
        close, dissimilarity = distance < config.min_distance, None
        if context.resources.embed is not None and not close:
            (embedding,) = await asyncio.to_thread(context.resources.embed, [reply.solution])
            dissimilarity, nearest = _nearest([cosine_distance(embedding, other) for other in embeddings])
            close = dissimilarity < config.min_dissimilarity
            if not close:
                embeddings.append(embedding)
        if close:
            refused.append(f"- {summary} This is approach {nearest + 1} again.")
            context.unusable[NEAR_COPY] += 1
            continue
        paths.append(
            Path(
                text=reply.solution.strip(),
                answer=tidy(reply.answer),
                summary=summary,
                distance=distance,
                dissimilarity=dissimilarity,
            )
        )
        if len(paths) == wanted:
            break
    if len(paths) < run.min_threads:
        if last is not None and not paths:
            raise last
        raise Rejection("too few distinct paths", f"{len(paths)} after {config.max_calls} calls")
    labels = rng.sample(range(1, context.config.student.max_label + 1), len(paths))
    return item.model_copy(update={"paths": tuple(paths), "labels": tuple(labels)})
