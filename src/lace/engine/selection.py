"""Reading a thread's closing words, and choosing the thread that answers for the lattice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Tag = Literal["best", "success", "fail"]
ChosenBy = Literal["best_tag", "majority", "first"]
Select = Literal["self", "vote", "first"]

_TAG = re.compile(r"\[\[(best|success|fail)\]\]")
_ANSWER = re.compile(r"answer:\s*(.*?)\s*(?=\[\[|\n|$)", re.IGNORECASE)


def read_tag(text: str) -> Tag | None:
    """The thread's own verdict: the last tag that it wrote."""
    tags = _TAG.findall(text)
    return tags[-1] if tags else None


def read_answer(text: str) -> str | None:
    """What follows the last `answer:`, up to a tag or the end of the line; None for no answer or `none`."""
    answers = _ANSWER.findall(text)
    if not answers or answers[-1].lower() in ("", "none"):
        return None
    return str(answers[-1])


def choose_thread(
    tags: Sequence[Tag | None], answers: Sequence[str | None], select: Select = "self"
) -> tuple[int, ChosenBy]:
    """The thread that speaks for the lattice, and why.

    `self`: the only thread that claims `[[best]]`; if none or several claim it, as `vote`. `vote`: the first thread
    with the most frequent answer; if nobody answers, as `first`. `first`: the first thread.
    """
    claims = [index for index, tag in enumerate(tags) if tag == "best"]
    if select == "self" and len(claims) == 1:
        return claims[0], "best_tag"
    if select != "first" and (winner := majority(answers)) is not None:
        return list(answers).index(winner), "majority"
    return 0, "first"


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, threads without one not counted; among equals the one given first."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None
