"""From records to token rows, with the check that makes the data honest: no thread may know what it could not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from lace.data.record import LatticeRecord

LAG = {"strict": 2, "causal": 1}
"""Smallest distance in steps from a source token to a token that may rest on it. The token of step t is predicted by
the query of step t-1, which reads entries of steps < t-1 in `strict` mode and <= t-1 in `causal` mode."""


class RecordRejected(ValueError):
    """A record that cannot be made causal, or that breaks the format; the message says why."""


@dataclass(frozen=True)
class AssembledLattice:
    """One lattice as token ids, ready for the collator."""

    prompt_ids: list[int]
    thread_ids: list[int]
    """One label per thread."""
    tokens: list[list[int]]
    """Generated token ids of each thread; token s is of step s."""
    learned: list[list[bool]]
    """Which generated tokens the loss counts."""
    choices: list[dict[int, dict[int, float]]]
    """By thread and step: probabilities of the tokens that the teacher drew from, where it drew."""
    blind: bool = False
    """Whether the threads were written without reading each other, and so must not be trained to ignore what they
    could read: none of their tokens is in the lattice then."""


def check_causality(record: LatticeRecord, visibility: str) -> None:
    """Checks every reference of a record, token by token.

    Raises:
        RecordRejected: names the first token that rests on something its thread could not have read.
    """
    if visibility not in LAG:
        raise RecordRejected(f"visibility {visibility!r} keeps no memory of other threads; use one of {sorted(LAG)}")
    for index, thread in enumerate(record.threads):
        for reference in thread.references:
            source = record.threads[reference.source]
            where = f"thread {thread.label}, step {reference.step}"
            if reference.source == index:
                raise RecordRejected(f"{where}: refers to itself")
            if not 0 <= reference.step < len(thread.tokens) or not 0 <= reference.source_step < len(source.tokens):
                raise RecordRejected(f"{where}: a reference points outside of the text")
            if reference.step - reference.source_step < LAG[visibility]:
                raise RecordRejected(
                    f"{where}: rests on step {reference.source_step} of thread {source.label}, "
                    f"readable from step {reference.source_step + LAG[visibility]} on in {visibility!r} mode"
                )


def assemble(record: LatticeRecord, tokenizer: PreTrainedTokenizerBase, visibility: str = "strict") -> AssembledLattice:
    """Turns a record whose tokens are the tokenizer's own into token ids, after `check_causality`.

    Raises:
        RecordRejected: a reference comes too early, labels repeat, or a token is not in the vocabulary.
    """
    check_causality(record, visibility)
    labels = [thread.label for thread in record.threads]
    if len(set(labels)) != len(labels):
        raise RecordRejected(f"labels are not distinct: {labels}")
    tokens = []
    for thread in record.threads:
        ids = cast(list[int], tokenizer.convert_tokens_to_ids(thread.tokens))
        if tokenizer.unk_token_id in ids:
            unknown = thread.tokens[ids.index(tokenizer.unk_token_id)]
            raise RecordRejected(f"thread {thread.label}: token {unknown!r} is not in the vocabulary")
        tokens.append(ids)
    learned = [[step >= t.opening for step in range(len(t.tokens))] for t in record.threads]
    choices = [
        {
            step: {cast(int, tokenizer.convert_tokens_to_ids(token)): p for token, p in options.items() if p > 0}
            for step, options in thread.choices.items()
        }
        for thread in record.threads
    ]
    return AssembledLattice(tokenizer(record.prompt)["input_ids"], labels, tokens, learned, choices)
