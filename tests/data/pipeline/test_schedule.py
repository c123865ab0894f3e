"""When threads may say what of one another."""

from __future__ import annotations

from random import Random

import pytest

from lace.data.assemble import LAG, check_causality
from lace.data.record import LatticeRecord, ThreadRecord
from lace.data.stages.schedule import PlannedNote, PlannedThread, schedule


def thread(lengths: list[int], notes: list[PlannedNote] | None = None) -> PlannedThread:
    steps = [[f"s{n}"] * length for n, length in enumerate(lengths)]
    return PlannedThread(["o"], steps, notes or [], ["c", "c"])


def test_a_note_that_comes_in_time_stays_where_it_was_put() -> None:
    first = thread([5, 5], [PlannedNote(0, 1, 0, ["n"])])
    written = schedule([first, thread([2, 8])], ["."], LAG["strict"])
    assert written[0].tokens[:7] == ["o", "s0", "s0", "s0", "s0", "s0", "n"]
    (note, _) = written[0].references
    assert (note.step, note.source, note.source_step) == (6, 1, 2)
    assert (written[0].moved, written[0].waited) == (0, 0)


@pytest.mark.parametrize(("lag", "place"), [(1, 4), (2, 9)])
def test_a_note_that_comes_too_early_is_moved_behind_a_later_step(lag: int, place: int) -> None:
    """The other's step ends at token 3; a note at token 4 can know of it in `causal` mode, but not in `strict` mode."""
    first = thread([3, 5, 5], [PlannedNote(0, 1, 0, ["n"])])
    written = schedule([first, thread([3, 10])], ["."], lag)
    assert written[0].tokens.index("n") == place
    assert written[0].moved == (lag == 2)


def test_behind_the_last_step_a_thread_waits() -> None:
    first = thread([3], [PlannedNote(0, 1, 0, ["n"])])
    written = schedule([first, thread([5, 5])], ["."], 2)
    # The other's first step ends at token 5, its second at token 10.
    assert written[0].tokens == ["o", "s0", "s0", "s0", ".", ".", ".", "n", ".", ".", ".", ".", "c", "c"]
    assert (written[0].moved, written[0].waited) == (1, 7)
    assert written[1].waited == 0


def test_waiting_is_whole_repetitions() -> None:
    written = schedule([thread([1]), thread([7])], ["a", "b"], 2)
    assert written[0].tokens == ["o", "s0", *["a", "b"] * 4, "c", "c"]


@pytest.mark.parametrize("visibility", ["strict", "causal"])
def test_random_lattices_are_always_causal_and_lose_nothing(visibility: str) -> None:
    rng = Random(visibility)
    for _ in range(300):
        lengths = [[rng.randint(1, 9) for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(2, 5))]
        threads = []
        for own, steps in enumerate(lengths):
            notes = []
            for _ in range(rng.randint(0, 4)):
                about = rng.choice([n for n in range(len(lengths)) if n != own])
                about_step = rng.randrange(len(lengths[about]))
                notes.append(PlannedNote(rng.randrange(len(steps)), about, about_step, ["n"] * rng.randint(1, 4)))
            threads.append(thread(steps, sorted(notes, key=lambda note: note.after)))
        written = schedule(threads, ["."], LAG[visibility])
        check_causality(
            LatticeRecord("", [ThreadRecord(n, w.tokens, 1, w.references) for n, w in enumerate(written)]), visibility
        )
        for plan, w in zip(threads, written, strict=True):
            expected = sum(map(len, plan.steps)) + sum(len(note.tokens) for note in plan.notes) + 3
            assert len(w.tokens) == expected + w.waited
            assert len(w.references) == len(plan.notes) + len(threads) - 1
