"""When threads that write in lock-step may say what of one another: notes are moved to where their thread could know.

Time is counted in tokens. A text that rests on token s of another thread begins at token s + lag at the earliest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lace.data.record import Reference


@dataclass(frozen=True)
class PlannedNote:
    """A note before it has a time; `after`, `about` and `about_step` as in `lace.data.pipeline.item.Note`."""

    after: int
    about: int
    about_step: int
    tokens: list[str]


@dataclass(frozen=True)
class PlannedThread:
    """A thread in pieces of tokens."""

    opening: list[str]
    steps: list[list[str]]
    notes: list[PlannedNote]
    """In the order of `after`."""
    closing: list[str]
    """Rests on the last step of every other thread."""


@dataclass
class WrittenThread:
    """A thread in time."""

    tokens: list[str]
    references: list[Reference] = field(default_factory=list)
    """One for each note and one to each other thread for the closing, at their first tokens; what follows them comes
    later still."""
    step_ends: list[int] = field(default_factory=list)
    """Index of the last token of each step."""
    moved: int = 0
    """Notes that stand behind a later step than planned, or waited for."""
    waited: int = 0
    """Tokens of waiting."""


def schedule(threads: list[PlannedThread], waiting: list[str], lag: int) -> list[WrittenThread]:
    """Writes all threads in lock-step.

    A note that would come too early is moved behind the next step at which it does not; behind its last step a thread
    waits, for what its notes rest on and for the others to write their last steps, and closes.

    Args:
        threads: at least one step each.
        waiting: tokens that are repeated to pass time.
        lag: smallest distance from a token to one that rests on it.
    """
    written = [WrittenThread(list(thread.opening)) for thread in threads]
    pending = [list(thread.notes) for thread in threads]

    def ready(note: PlannedNote, thread: int) -> bool:
        ends = written[note.about].step_ends
        return note.about_step < len(ends) and len(written[thread].tokens) - ends[note.about_step] >= lag

    # Who has written least goes on. Whatever it could know has been written then: the others are not behind it.
    while open_threads := [n for n, w in enumerate(written) if len(w.step_ends) < len(threads[n].steps)]:
        n = min(open_threads, key=lambda thread: len(written[thread].tokens))
        step = len(written[n].step_ends)
        due = [note for note in pending[n] if note.after < step and ready(note, n)]
        if due:
            pending[n].remove(due[0])
            _write_note(written, n, due[0], moved=step > due[0].after + 1)
        else:
            written[n].tokens += threads[n].steps[step]
            written[n].step_ends.append(len(written[n].tokens) - 1)

    for n, thread in enumerate(threads):
        own, last = written[n], len(thread.steps) - 1
        for note in sorted(pending[n], key=lambda note: written[note.about].step_ends[note.about_step]):
            paused = _wait(own, written[note.about].step_ends[note.about_step] + lag, waiting)
            _write_note(written, n, note, moved=paused or note.after < last)
        others = [other for other in range(len(threads)) if other != n]
        _wait(own, max((written[other].step_ends[-1] + lag for other in others), default=0), waiting)
        start = len(own.tokens)
        own.references += [Reference(start, other, written[other].step_ends[-1]) for other in others]
        own.tokens += thread.closing
    return written


def _write_note(written: list[WrittenThread], thread: int, note: PlannedNote, *, moved: bool) -> None:
    own = written[thread]
    own.references.append(Reference(len(own.tokens), note.about, written[note.about].step_ends[note.about_step]))
    own.tokens += note.tokens
    own.moved += moved


def _wait(thread: WrittenThread, until: int, waiting: list[str]) -> bool:
    """Passes time until that token; returns whether there was any to pass."""
    missing = until - len(thread.tokens)
    if missing <= 0:
        return False
    tokens = waiting * -(-missing // len(waiting))
    thread.tokens += tokens
    thread.waited += len(tokens)
    return True
