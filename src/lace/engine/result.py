"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lace.engine.selection import ChosenBy, Tag

FinishReason = Literal["eos", "stop", "length", "lattice"]
"""End token; stop text; `max_tokens`; early stop, since another thread had closed with `[[best]]`."""
Strategy = Literal["lace", "independent", "swapped"]
"""Threads read each other; the lattice is off; a control: threads read those of another prompt."""
STRATEGIES: tuple[Strategy, ...] = ("lace", "independent", "swapped")


@dataclass(frozen=True)
class ThreadResult:
    """One finished thread."""

    index: int
    label: int
    """Its thread id, also the number in its opening."""
    text: str
    """What it wrote after the opening, without special tokens and stop text."""
    token_ids: list[int]
    """Sampled tokens, the end token included; the opening not."""
    logprobs: list[float]
    """Of each sampled token, in nats, under the model's distribution at temperature 1."""
    finish_reason: FinishReason
    tag: Tag | None
    answer: str | None

    def summary(self) -> dict[str, Any]:
        """What is told of a thread beside its text, as JSON."""
        return {
            "index": self.index,
            "label": self.label,
            "finish_reason": self.finish_reason,
            "tokens": len(self.token_ids),
            "answer": self.answer,
            "tag": self.tag,
        }


@dataclass(frozen=True)
class LatticeResult:
    """All threads of one prompt, and the one that speaks for them."""

    prompt: str
    strategy: Strategy
    threads: list[ThreadResult]
    chosen: int
    """Index of the chosen thread."""
    chosen_by: ChosenBy
    prompt_tokens: int
    completion_tokens: int
    """Sampled tokens of all threads together."""
    steps: int
    """Decoding steps, the length of the longest thread with its opening."""
    seconds: float
    """From the start of its batch to its last token."""
    step_seconds: list[float]
    """The same for the tokens of each step; all threads write theirs at once."""

    @property
    def answer(self) -> str | None:
        return self.threads[self.chosen].answer


@dataclass(frozen=True)
class Reading:
    """An entry of another thread that a token's choice rests on."""

    thread: int
    """Index of the thread that is read."""
    step: int
    """Of the token that is read, counted from its thread's opening on."""
    weight: float
    """What got through of it, attention times gate, see `lace.engine.exchanges`."""


@dataclass(frozen=True)
class TokenEvent:
    """One token as it is written, or the end of a thread."""

    prompt: int
    """Index of the prompt."""
    thread: int
    label: int
    token_id: int | None
    """None if the thread ends without a new token, by an early stop."""
    text: str
    """New text of the thread; may be empty while a character is incomplete or a stop text might follow."""
    logprob: float | None
    """None for a token of the opening, which is given and not sampled, and where there is no token."""
    finish_reason: FinishReason | None
    readings: tuple[Reading, ...] = ()
    """The strongest first, if somebody asked for them."""
