"""Assembles the threads of an item to a causal lattice for the student's tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lace.data.assemble import LAG, RecordRejected, assemble
from lace.data.pipeline.context import Context
from lace.data.pipeline.item import Item, Note, Path, Rejection
from lace.data.pipeline.text import spell_answer
from lace.data.record import LatticeRecord, ThreadRecord
from lace.data.stages.schedule import PlannedNote, PlannedThread, schedule

VOICE = {"takes": "From Thread {label}: {text}", "warns": "Not as Thread {label}: {text}"}
"""A note names whom it is about before it says what."""


async def lattice(item: Item, context: Context) -> Item:
    """Puts steps, notes and closings in time.

    Raises:
        Rejection: if threads would wait too long, a row is too long, or the tokenizer cannot write their texts.
    """
    student, tokenizer = context.config.student, context.resources.tokenizer

    def planned(label: int, path: Path) -> PlannedThread:
        closing = f"\n{path.comparison}\nanswer: {spell_answer(path.answer)} [[{path.tag}]]"
        return PlannedThread(
            opening=spell(tokenizer, student.opening.format(label=label)),
            steps=[spell(tokenizer, f"\n{step}") for step in path.steps],
            notes=[PlannedNote(n.after, n.about, n.about_step, spell(tokenizer, _voiced(n))) for n in path.notes],
            closing=[*spell(tokenizer, closing), str(tokenizer.eos_token)],
        )

    def _voiced(note: Note) -> str:
        return "\n" + VOICE[note.kind].format(label=item.labels[note.about], text=note.text)

    plan = [planned(label, path) for label, path in zip(item.labels, item.paths, strict=True)]
    written = schedule(plan, spell(tokenizer, student.waiting), LAG[student.visibility])
    for label, thread in zip(item.labels, written, strict=True):
        if thread.waited > student.max_waiting:
            raise Rejection("threads too uneven", f"thread {label} would wait for {thread.waited} tokens")
    record = LatticeRecord(
        student.prompt.replace("{question}", item.question.text),
        [
            ThreadRecord(label, thread.tokens, len(given.opening), thread.references)
            for label, given, thread in zip(item.labels, plan, written, strict=True)
        ],
    )
    try:
        assembled = assemble(record, tokenizer, student.visibility)
    except RecordRejected as error:
        raise Rejection("not causal", str(error)) from None
    longest = len(assembled.prompt_ids) + max(map(len, assembled.tokens))
    if longest > student.max_tokens:
        raise Rejection("too long", f"a row of {longest} tokens, more than student.max_tokens = {student.max_tokens}")
    moved, waited = sum(thread.moved for thread in written), sum(thread.waited for thread in written)
    return item.model_copy(update={"lattice": record, "moved": moved, "waited": waited})


def spell(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The tokens of a piece of text that goes on where another ended.

    Raises:
        Rejection: if they do not give the text back, or one of them has a meaning of its own, as an end of text has.
    """
    tokens = tokenizer.tokenize(text)
    if tokens[:1] == ["▁"]:  # some tokenizers put a space before whatever they are given
        tokens = tokens[1:]
    if special := set(tokens) & set(tokenizer.all_special_tokens):
        raise Rejection("special token in text", f"{sorted(special)[0]!r} in {text[:100]!r}")
    ids = tokenizer.convert_tokens_to_ids(tokens)
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise Rejection("not in the tokenizer's alphabet", repr(text[:100]))
    return tokens
