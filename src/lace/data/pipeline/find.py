"""Finding what has become of one question."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lace.data.pipeline.item import Item
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.plan import OUTCOMES_NAME
from lace.data.pipeline.stats import read_about


@dataclass(frozen=True)
class Rejected:
    """Why a question has not come further."""

    stage: str
    reason: str
    detail: str


def find_item(out: Path, identity: str) -> tuple[Item | None, Rejected | None]:
    """What the last stage that kept a question has made of it, and why it was rejected, if it was.

    Raises:
        ValueError: one line, if there is no such question; names one like it.
    """
    item, rejected = None, None
    known: list[str] = []
    for number, stage in enumerate(read_about(out).stages):
        kept = False
        for line in read_lines(out / stage["folder"] / OUTCOMES_NAME):
            if line["id"] != identity:
                if number == 0 and len(known) < 10_000:
                    known.append(line["id"])
            elif line["kept"]:
                item, kept = Item.model_validate(line["item"]), True
            else:
                rejected = Rejected(stage["name"], line["reason"], line["detail"])
        if kept:  # and then the rejected one was another row of the same id
            rejected = None
    if item is None and rejected is None:
        nearest = get_close_matches(identity, known, n=1, cutoff=0.0)
        raise ValueError(f"{out} has no question {identity!r}" + (f"; there is {nearest[0]!r}" if nearest else ""))
    return item, rejected
