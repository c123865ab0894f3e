"""The record of one lattice: a prompt, the threads' texts, and which token rests on which token of another thread."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reference:
    """Token `step` of this thread could only be written by someone who had read token `source_step` of thread
    `source` (an index into `LatticeRecord.threads`). Steps count from a thread's first generated token."""

    step: int
    source: int
    source_step: int


@dataclass
class ThreadRecord:
    """One thread: its label (also its rotary thread id), and its text as tokens, the opening included."""

    label: int
    tokens: list[str]
    opening: int = 0
    """How many of the first tokens are given (`Thread 7:`) and hence not learned."""
    references: list[Reference] = field(default_factory=list)
    choices: dict[int, dict[str, float]] = field(default_factory=dict)
    """Where the teacher drew a token at random: step -> probability of each token it could have written. Learning the
    whole distribution instead of the one draw takes most of the noise out of the gradient."""


def opening_words(label: int) -> list[str]:
    """What the symbolic teachers' threads begin with; given, not learned."""
    return ["Thread", str(label), ":"]


@dataclass
class LatticeRecord:
    """N threads of one prompt, aligned in generated time: token t of every thread is written in the same step."""

    prompt: str
    threads: list[ThreadRecord]
    origin: str = ""
    """Where the record comes from, as JSON text; not learned from."""
