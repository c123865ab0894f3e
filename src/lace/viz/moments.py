"""What a token is there for, in the language of the puzzles: the moment of a thread's life that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from lace.data.vocabulary import TAGS
from lace.tasks.chain_sum import VERDICTS
from lace.tasks.countdown import PAIR_IDEAS, TRIPLE_IDEAS

MOMENTS = {
    "first": "names its first idea, when there is hardly anything to read",
    "choice": "names another idea of its own",
    "take-over": "names an idea that another thread has found right",
    "again": "says a name or a value once more",
    "see": "says that it looks at others",
    "verdict": "judges: yes, no, ok, keep, fix",
    "finding": "says what was found, whose it is, its own place, or the value that stands",
    "work": "calculates",
    "waiting": "waits",
    "closing": "writes the answer",
    "tag": "compares itself with the others in a tag",
    "end": "ends",
}
"""Name -> what a token of it does. A language model's text is `work` and tags, as far as it has no such words."""


def moments(texts: Sequence[str]) -> list[str]:
    """The moment of each token of one thread, its opening left out.

    A name counts as chosen where it first stands; `see` behind it makes it a take-over. Names, labels and values say
    what was found behind `yes`, and in sums, behind `see`.

    Args:
        texts: what each token adds to the thread's text.
    """
    words = [text.strip() for text in texts]
    found: list[str] = []
    closing = behind_yes = False
    for n, word in enumerate(words):
        before, after = words[n - 1] if n else "", words[n + 1] if n + 1 < len(words) else ""
        name = word in TRIPLE_IDEAS or word in PAIR_IDEAS
        stands = word.isdecimal() and before == "see" and after in (*VERDICTS, ",")
        closing = closing or word == "answer:"
        if word == "" and n == len(words) - 1:
            moment = "end"
        elif word in TAGS:
            moment = "tag"
        elif closing:
            moment = "closing"
        elif word == "see":
            moment = "see"
        elif word == "yes" or word == "no" or word in VERDICTS:
            moment = "verdict"
        elif word == "done":
            moment = "waiting"
        elif stands or (behind_yes and (name or word.isdecimal())):
            moment = "finding"
        elif (name or word.isdecimal()) and word == before:
            moment = "again"
        elif name:
            taken_over = "see" in words[n + 1 : n + 3]
            moment = "take-over" if taken_over else "choice" if "choice" in found or "first" in found else "first"
        else:
            moment = "work"
        behind_yes = word == "yes" or (behind_yes and moment == "finding")
        found.append(moment)
    return found
