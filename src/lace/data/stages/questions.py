"""The first stage: questions of all sources, without repetitions and without what benchmarks ask.

Unlike the others it looks at all questions together. It is quick and makes no calls, so that an interrupted one begins
anew; its result appears only when it is whole.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path

from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.decontaminate import Contamination
from lace.data.pipeline.duplicates import NearDuplicates
from lace.data.pipeline.item import Item, Mark, Question, Rejection
from lace.data.pipeline.keyed_log import KeyedLog, content_hash
from lace.data.pipeline.outcomes import now, write_item, write_rejection
from lace.data.pipeline.sources import read_sources

REPORT_NAME = "decontamination.json"


def question_key(question: Question) -> str:
    """Of the content: the same question has the same key wherever it comes from."""
    return content_hash("question", question.text, question.answer, question.verifier, question.data)


def prepare(config: DataConfig, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Writes the outcomes of this stage into the folder, and the decontamination report beside them.

    Args:
        config: of the run.
        folder: of this stage.
        progress: told questions read and questions decided.

    Raises:
        ValueError: one line, for a source or benchmark that cannot be read, or if no question is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    candidates, unfinished = folder / "candidates.partial", folder / "outcomes.partial"
    for path in (candidates, unfinished):
        path.unlink(missing_ok=True)
    settings = config.questions
    contamination = Contamination(settings.benchmarks)
    log, duplicates = KeyedLog(unfinished), NearDuplicates()
    offsets = array("Q")
    with candidates.open("wb") as file:
        for number, found in enumerate(read_sources(settings.sources), start=1):
            if isinstance(found, Rejection):
                write_rejection(log, content_hash("no question", number, found.detail), "", found)
                continue
            offsets.append(file.tell())
            file.write(found.model_dump_json().encode() + b"\n")
            if settings.near_duplicates:
                duplicates.add(found.text)
            progress(number, 0)
    with candidates.open("rb") as written:

        def question(number: int) -> Question:
            written.seek(offsets[number])
            return Question.model_validate_json(written.readline())

        repeats = duplicates.find(lambda n: question(n).text, settings.near_duplicates) if len(offsets) else {}
        report = {name: {"rows": rows, "hits": list[dict[str, object]]()} for name, rows in contamination.rows.items()}
        kept = _Seen()
        for number in range(len(offsets)):
            each = question(number)
            key = question_key(each)
            overlap = contamination.overlap(each.text)
            if kept.has(key):  # so its line needs another one
                repetition = Rejection("exact duplicate", "an earlier question is the same in every respect")
                write_rejection(log, content_hash("exact duplicate", number, key), "", repetition, each.id)
            elif number in repeats:
                write_rejection(
                    log, key, "", Rejection("near-duplicate", f"of {question(repeats[number]).id}"), each.id
                )
            elif overlap is not None and overlap.share >= settings.overlap:
                where = f"{overlap.benchmark}, row {overlap.row}"
                write_rejection(log, key, "", Rejection("in a benchmark", f"{overlap.share:.0%} in {where}"), each.id)
                hits = report[overlap.benchmark]["hits"]
                assert isinstance(hits, list)
                hits.append({"id": each.id, "row": overlap.row, "share": overlap.share})
            elif kept.has(content_hash("text", each.text)):  # procedural questions of other seeds may ask the same
                write_rejection(log, key, "", Rejection("repeated", "an earlier question has this text"), each.id)
            elif kept.has(content_hash(each.id)):
                write_rejection(log, key, "", Rejection("id is taken", each.id), each.id)
            else:
                mark = Mark(stage="questions", key=key, parent="", made=now())
                write_item(log, key, "", Item(question=each, history=(mark,)))
                kept.add(content_hash(each.id))
                kept.add(content_hash("text", each.text))
            kept.add(key)
            progress(len(offsets), number + 1)
    log.close()
    candidates.unlink()
    (folder / REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(folder / "outcomes.jsonl")


class _Seen:
    """A set of keys by 64 bits of them."""

    def __init__(self) -> None:
        self._short: set[int] = set()

    def has(self, key: str) -> bool:
        return int(key[:16], 16) in self._short

    def add(self, key: str) -> None:
        self._short.add(int(key[:16], 16))
