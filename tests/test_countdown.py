"""The task against reasoning-gym itself, and the exact reading of traces."""

from __future__ import annotations

import time
from itertools import islice
from random import Random

import pytest
import reasoning_gym

from lace.tasks.countdown import MAX_VALUE, Puzzle, attempts, combine, generate, parse, puzzles, read_trace, solutions

PUZZLE = Puzzle((3, 7, 12), 33)


@pytest.fixture(scope="module")
def gym():
    """One set of reasoning-gym's; its scorer works for any entry."""
    return reasoning_gym.create_dataset("countdown", size=50, seed=3, min_numbers=3, max_numbers=6)


@pytest.mark.parametrize(
    "answer",
    [
        "12 + 7 * 3",
        "( 7 * 3 ) + 12",
        " (12)+(3*7) ",
        "12 - 7 * -3",
        "-3 * -7 + 12",
        "12 + 7 + 3",
        "3 * 7 + 12 + 0",
        "7 * 3 + 13",
        "12 + 21",
        "33",
        "12 * 3 - 3",
        "12 + 7 * 3 = 33",
        "12 + 7 * 3;",
        "12 + 3(7)",
        "0xC + 7 * 3",
        "1_2 + 7 * 3",
        "12 + 7 * 3 # 3",
        "12 // 7 + 3",
        "3 / (7 - 7) + 12",
        "( 12 + 7 * 3",
        "none",
        "x + y",
        "__import__('os')",
        "",
        " ",
        None,
    ],
)
def test_score_agrees_with_reasoning_gym(gym, answer: str | None) -> None:
    assert PUZZLE.check(answer) == (gym.score_answer(answer, PUZZLE.to_entry()) == 1.0)


def test_generated_questions_are_read_and_their_answers_accepted(gym) -> None:
    wordings = set()
    for entry in gym:
        puzzle = parse(entry["question"])
        assert puzzle == Puzzle.from_entry(entry)
        assert puzzle.check(entry["answer"])
        assert not Puzzle(puzzle.numbers, puzzle.target + 1).check(entry["answer"])
        assert gym.score_answer(entry["answer"], puzzle.to_entry() if len(puzzle.numbers) < 5 else entry) == 1.0
        wordings.add(entry["question"].split()[0])
    assert wordings == {"Using", "Find", "Calculate"}


def test_own_solutions_are_right_for_reasoning_gym(gym) -> None:
    for puzzle in puzzles(20, seed=1) + puzzles(5, seed=1, numbers=4):
        for answer in islice(solutions(puzzle), 5):
            assert puzzle.check(answer)
            assert gym.score_answer(answer, puzzle.to_entry()) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "Use 3, 7 and 12 to make 33",
        "use 3, 7, and 12 to reach 33.",
        "  Use the numbers 3 7 12 to get 33?\nThank you",
    ],
)
def test_wordings(text: str) -> None:
    assert parse(text) == PUZZLE
    assert parse(PUZZLE.prompt) == PUZZLE


@pytest.mark.parametrize(
    "text", ["", "Hello", "Use 3 to make 3", "Use 3, 7 and 12", "Use 3 and x to make 5", "Use " * 99]
)
def test_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="not a Countdown question") as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9",
        "9**9**9**9**9",
        "(" * 95 + "3" + ")" * 95,
        "(" * 100_000 + "3" + ")" * 100_000,
        "-" * 190 + "3",
        "9" * 199,
        "9" * 1_000_000,
        "*".join(["99"] * 60),
        "/".join(["9"] * 99),
        "\0",
        "3\n" * 90,
        "[" * 150,
        "lambda: 3",
    ],
)
def test_hostile_answers_are_refused_at_once(answer: str) -> None:
    start = time.perf_counter()
    assert not PUZZLE.check(answer)
    assert not Puzzle((9, 9, 9), 9).check(answer)
    assert time.perf_counter() - start < 5  # it must not hang; this is no timing


def test_hostile_traces_and_questions_are_read_at_once() -> None:
    start = time.perf_counter()
    report = read_trace(PUZZLE, f"{'9' * 6000} + 1 = 2 , {'12 + 3 = 15 , ' * 500} 1 + {'1' * 6000}")
    assert (report.steps, report.false_steps) == (501, 1)
    for text in ("Use " + "1 , " * 5000 + "x", "use " + "1 " * 5000, "use 1" + " " * 5000 + "x to make 2"):
        with pytest.raises(ValueError, match="not a Countdown question"):
            parse(text)
    assert time.perf_counter() - start < 5


def test_splits_are_disjoint_whatever_the_order() -> None:
    parts = {
        split: {(tuple(sorted(p.numbers)), p.target) for p in puzzles(150, seed=5, split=split)}
        for split in ("train", "validation", "test")
    }
    assert all(len(part) == 150 for part in parts.values())
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["validation"]
    assert not parts["validation"] & parts["test"]
    assert {Puzzle(order, 33).split for order in ((3, 7, 12), (12, 3, 7), (7, 12, 3))} == {PUZZLE.split}


def test_puzzles_are_reproducible_and_different() -> None:
    assert puzzles(30, seed=2) == puzzles(30, seed=2)
    assert puzzles(30, seed=2) != puzzles(30, seed=3)
    assert puzzles(30, seed=2)[:10] == puzzles(10, seed=2)


@pytest.mark.parametrize("numbers", [3, 4])
def test_generated_puzzles_are_solvable(numbers: int) -> None:
    for seed in range(20):
        puzzle = generate(Random(seed), "train", numbers)
        assert puzzle.split == "train"
        assert len(puzzle.numbers) == numbers
        assert puzzle.check(next(solutions(puzzle)))


def test_attempts_are_legal_and_differ_in_name() -> None:
    rng = Random(0)
    for count in (3, 3, 3, 4, 4):
        numbers = tuple(rng.randint(1, 20) for _ in range(count))
        found = attempts(numbers)
        assert len({attempt.names for attempt in found}) == len(found)
        for attempt in found[:200]:
            assert Puzzle(numbers, attempt.value).check(attempt.expression)
            lines = [f"{n} {' , '.join(map(str, e))}" for n, e in zip(attempt.names, attempt.equations, strict=True)]
            report = read_trace(Puzzle(numbers, attempt.value), " ".join(lines))
            assert report.attempts == (attempt.names,)
            assert (report.steps, report.false_steps, report.illegal_steps) == (count - 1, 0, 0)
    with pytest.raises(ValueError, match="not for 5"):
        attempts((1, 2, 3, 4, 5))


def test_combine() -> None:
    assert combine("-", 3, 7) == 4
    assert combine("/", 3, 12) == 4
    assert combine("/", 5, 12) is None
    assert combine("/", 0, 5) is None
    assert combine("-", 5, 5) is None
    assert combine("+", MAX_VALUE, 1) is None
    assert combine("*", 10, 10) == MAX_VALUE == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(x+y)*z 7 + 3 = 10 , 12 * 10 = none no (x+y)*z ,", (2, 0, 0)),
        ("(x+y)*z 7 + 3 = 10 , 12 * 10 = 120 no (x+y)*z ,", (2, 1, 0)),  # too large
        ("(x+y)-z 7 + 3 = 10 , 12 - 10 = none no (x+y)-z ,", (2, 1, 0)),  # there is a value
        ("(x/y)+z 7 / 3 = none no (x/y)+z , (x+y)-z 7 + 3 = 10 , 12 - 10 = 2 no (x+y)-z ,", (3, 0, 0)),
        ("(x+y)-z 7 + 3 = 11 , 12 - 11 = 1 no", (2, 1, 0)),  # false, then legal with the false value
        ("(x-y)*z 3 - 7 = 4 , 12 * 4 = 48 no", (2, 1, 0)),  # smaller minus larger
        ("(x+y)+z 7 + 5 = 12 , 12 + 12 = 24 no", (2, 0, 1)),  # 5 was never given
        ("(x+y)+z 7 + 3 = 10 , 7 + 10 = 17 no", (2, 0, 1)),  # 7 was used before
        ("(x+y)+z 7 + 7 = 14 no", (1, 0, 1)),  # there is only one 7
        ("(x/y)*z 12 / 7 = 1 no", (1, 1, 0)),
        ("(x+y)+z 7 + 3 = 10 (x+z)+y 12 + 3 = 15 , 15 + 7 = 22 no", (3, 0, 0)),  # a new idea takes all numbers again
        ("(x+y)*z (x+y)+z see 7 + 3 = 10 , 12 + 10 = 23 no", (2, 1, 0)),
        ("(x+y)+z see answer: 7 + 5 = 1", (0, 0, 0)),
        ("(x+z)/y see (x*z)/y see (x*z)/y see", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_trace_reading_finds_false_and_illegal_steps(text: str, expected: tuple[int, int, int]) -> None:
    report = read_trace(PUZZLE, f"Thread 7 : {text}")
    assert (report.steps, report.false_steps, report.illegal_steps) == expected


def test_trace_reading_lists_attempts() -> None:
    text = (
        "(x/y)+z (x/y)+z 7 / 3 = none no , (x+y)-z (x+y)-z 7 + 3 = 10 , 12 - 10 = 2 no , (x+y)+z (x*y)+z see 7 * 3 = 21"
    )
    assert read_trace(PUZZLE, text).attempts == (("(x/y)+z",), ("(x+y)-z",), ("(x+y)+z",))
    again = "(x/y)+z (x/y)+z 7 / 3 = none no , (x/y)+z (x/y)+z 7 / 3 = none no"
    assert read_trace(PUZZLE, again).attempts == (("(x/y)+z",),) * 2


def test_trace_reading_lists_attempts_of_two_names() -> None:
    puzzle = Puzzle((3, 7, 12, 5), 58)
    report = read_trace(
        puzzle,
        "a+b a+b 7 + 3 = 10 (x+y)+z (x+y)+z 12 + 10 = 22 , 22 + 5 = 27 no , b/a b/a 7 / 3 = none no , "
        "a/b a/b 7 / 3 = none no , a*c a*c 12 * 3 = 36 a+b see 7 + 3 = 10 (x+y)*z 12 + 10 = 22 , 22 * 5 = none no",
    )
    assert report.attempts == (("a+b", "(x+y)+z"), ("b/a",), ("a/b",))
    assert (report.steps, report.false_steps, report.illegal_steps) == (9, 0, 0)
