"""What threads take from one another or warn of, and how each closes; the judge must agree with the verifier."""

from __future__ import annotations

import re

from lace.data.pipeline.context import Context
from lace.data.pipeline.item import Item, Note, Path, Rejection, Tag
from lace.data.pipeline.replies import Judgement, Notes
from lace.data.pipeline.text import one_line
from lace.data.stages.solutions import refuse_tags

_THREADS = re.compile(
    r"(?<![a-z])thread(?:s\s+([0-9]+(?:\s*(?:,|and|or|&)\s*(?:and\s+)?[0-9]+)*)|\s*[#(]?\s*([0-9]+))", re.IGNORECASE
)


async def notes(item: Item, context: Context) -> Item:
    """Adds notes between the threads, then the closing judgement.

    Raises:
        Rejection: if no reply can be used, or the judge contradicts the verifier.
    """
    values = {"question": item.question.text, "threads": side_by_side(item, answers=False)}
    values["max_notes"] = str(context.config.notes.max_notes)
    noted = await context.ask(item, "notes", Notes, values, lambda reply: with_notes(item, reply, context))
    values = {"question": item.question.text, "threads": side_by_side(item, answers=True)}
    return await context.ask(item, "judge", Judgement, values, lambda reply: with_judgement(noted, reply))


def side_by_side(item: Item, *, answers: bool) -> str:
    """The threads as the teacher reads them: numbered steps under a label, and the answers, which threads write only
    when they close, and of which notes therefore cannot know."""
    blocks = []
    for label, path in zip(item.labels, item.paths, strict=True):
        lines = [f"{n}. {step}" for n, step in enumerate(path.steps, start=1)]
        blocks.append(
            "\n".join([f"Thread {label}:", *lines, *([f"Its answer: {one_line(path.answer)}"] if answers else [])])
        )
    return "\n\n".join(blocks)


def with_notes(item: Item, reply: Notes, context: Context) -> Item:
    """The item with the notes of a reply.

    Raises:
        Rejection: for threads or steps that there are not, notes of a thread about itself or that name a third thread,
            of which their place says nothing, and notes too many or too long.
    """
    config, index = context.config.notes, {label: n for n, label in enumerate(item.labels)}
    found: list[list[Note]] = [[] for _ in item.paths]
    for note in reply.notes:
        if note.thread not in index or note.about_thread not in index or note.thread == note.about_thread:
            raise Rejection("wrong thread", f"a note of thread {note.thread} about thread {note.about_thread}")
        thread, about = index[note.thread], index[note.about_thread]
        for step, path in ((note.after_step, item.paths[thread]), (note.about_step, item.paths[about])):
            if not 1 <= step <= len(path.steps):
                raise Rejection("wrong step", f"step {step} of a thread of {len(path.steps)}")
        text = " ".join(note.text.split())
        if not text:
            raise Rejection("empty", "a note has no text")
        refuse_tags(text)
        if others := _named(text) - {note.thread, note.about_thread}:
            raise Rejection("wrong thread", f"a note about thread {note.about_thread} names {sorted(others)}")
        if (length := context.tokens(text)) > config.max_tokens:
            raise Rejection("over budget", f"a note of {length} tokens, more than {config.max_tokens}")
        found[thread].append(
            Note(after=note.after_step - 1, about=about, about_step=note.about_step - 1, kind=note.kind, text=text)
        )
    if (most := max(map(len, found))) > config.max_notes:
        raise Rejection("wrong count", f"{most} notes of one thread, more than {config.max_notes}")
    paths = [
        path.model_copy(update={"notes": tuple(sorted(own, key=lambda note: note.after))})
        for path, own in zip(item.paths, found, strict=True)
    ]
    return item.model_copy(update={"paths": tuple(paths)})


def _named(text: str) -> set[int]:
    """The labels of the threads that a text names."""
    found = [several or one for several, one in _THREADS.findall(text)]
    return {int(label) for labels in found for label in re.findall(r"[0-9]{1,9}", labels)}


def with_judgement(item: Item, reply: Judgement) -> Item:
    """The item with comparisons and tags.

    Raises:
        Rejection: if threads are missing or named twice, not exactly one is best, or a tag contradicts the verifier.
    """
    labels = [verdict.thread for verdict in reply.threads]
    if sorted(labels) != sorted(item.labels):
        raise Rejection("wrong count", f"judged are the threads {labels}, not {list(item.labels)}")
    verdicts = {verdict.thread: verdict for verdict in reply.threads}
    tags: list[Tag] = [verdicts[label].tag for label in item.labels]
    if tags.count("best") != 1:
        raise Rejection("not one best", f"tags {tags}")
    for label, tag, path in zip(item.labels, tags, item.paths, strict=True):
        if (tag == "fail") == path.right:
            known = "right" if path.right else "wrong"
            raise Rejection("judge contradicts verifier", f"thread {label} is {known} and tagged {tag}")
    return item.model_copy(
        update={
            "paths": tuple(
                _closed(path, verdicts[label].comparison, tag)
                for label, tag, path in zip(item.labels, tags, item.paths, strict=True)
            )
        }
    )


def _closed(path: Path, comparison: str, tag: Tag) -> Path:
    text = " ".join(comparison.split())
    if not text:
        raise Rejection("empty", "a comparison has no text")
    refuse_tags(text)
    return path.model_copy(update={"comparison": text, "tag": tag})
