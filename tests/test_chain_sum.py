"""Chained sums against reasoning-gym itself, and the exact reading of traces."""

from __future__ import annotations

from itertools import accumulate, combinations, permutations
from random import Random

import pytest
import reasoning_gym

from lace.tasks.chain_sum import BLOCK, MAX_VALUE, ROUTES, Puzzle, check_range, generate, parse, puzzles, read_trace
from lace.tasks.task import find_task, get_task

PUZZLE = Puzzle(112, (35, -68, 30, 12, -20, 11, -40, 15))


@pytest.fixture(scope="module")
def gym():
    return reasoning_gym.create_dataset("chain_sum", size=30, seed=3, min_terms=3, max_terms=9, min_digits=2)


@pytest.mark.parametrize("answer", ["87", "88", " 87 ", "-87", "8 7", "none", "", None, "9" * 1500, "87 [[best]]"])
def test_score_agrees_with_reasoning_gym(gym, answer: str | None) -> None:
    assert PUZZLE.check(answer) == (gym.score_answer(answer, PUZZLE.to_entry()) == 1.0)


def test_questions_of_reasoning_gym_are_read(gym) -> None:
    for entry in gym:
        puzzle = parse(entry["question"])
        assert puzzle.expression == entry["metadata"]["expression"]
        assert puzzle.check(entry["answer"])


def test_prompts_are_read_back() -> None:
    assert PUZZLE.prompt == "Compute 112 + 35 - 68 + 30 + 12 - 20 + 11 - 40 + 15"
    assert parse(PUZZLE.prompt) == PUZZLE


@pytest.mark.parametrize("text", ["", "Compute 4", "Compute 4 * 3", "Use 3, 4 and 5 to make 12", "Compute 4 + x"])
def test_other_questions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a chained sum"):
        parse(text)


def test_values_stay_in_range_in_any_order() -> None:
    rng = Random(0)
    for _ in range(200):
        puzzle = generate(rng, "train")
        assert puzzle.split == "train"
        value = puzzle.start
        for block in puzzle.blocks:
            for order in permutations(block):
                assert all(1 <= v <= MAX_VALUE for v in accumulate(order, initial=value))
            value += sum(block)
        assert value == puzzle.answer


def test_splits_are_disjoint_and_draws_repeat() -> None:
    parts = {split: {p.expression for p in puzzles(300, 5, split)} for split in ("train", "validation", "test")}
    assert all(len(part) == 300 for part in parts.values())
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["validation"]
    assert puzzles(20, 5, "test") == puzzles(20, 5, "test") != puzzles(20, 6, "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "7 7 , 112 + 35 = 147 , 147 - 68 = 79 , 79 + 30 = 109 , 109 + 12 = 121 121 121 ok , 121 - 20 = 101 101 101",
            (5, 0, 0),
        ),
        (
            "7 see 1 , 112 - 68 = 44 , 44 + 30 = 74 , 74 + 12 = 86 , 86 + 35 = 121 121 see 121 keep , 121 + 11 = 132",
            (5, 0, 0),
        ),
        ("112 + 35 = 148 , 148 - 68 = 80 , 80 + 30 = 110 110 see 109 fix , 109 - 20 = 89 89 see 89 ok", (4, 1, 0)),
        ("112 + 35 = 147 , 147 - 20 = 127 127 see 127 ok", (2, 0, 1)),
        ("112 + 35 = 147 , 147 + 35 = 182 182 see 182 ok", (2, 0, 1)),
        ("112 + 35 = 147 , 146 - 68 = 78 78 see 78 ok", (2, 0, 1)),
        ("1 + " + "9" * 6000 + " = 3", (1, 1, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_trace_reading_finds_false_and_illegal_steps(text: str, expected: tuple[int, int, int]) -> None:
    report = read_trace(PUZZLE, text)
    assert (report.steps, report.false_steps, report.illegal_steps) == expected
    assert report.attempts == ()


def test_routes_share_few_sums() -> None:
    sums = [{(frozenset(route[:n]), route[n]) for n in range(BLOCK)} for route in ROUTES]
    assert all(sorted(route) == [*range(BLOCK)] for route in ROUTES)
    assert not any(one & other for one, other in combinations(sums[:4], 2))
    assert max(len(one & other) for one, other in combinations(sums, 2)) == 1


def test_tasks_are_found_by_name() -> None:
    assert get_task("chain-sum").parse(PUZZLE.prompt) == PUZZLE
    assert get_task("countdown").puzzles(3, 1, "test")[0].prompt.startswith("Use ")
    with pytest.raises(ValueError, match="unknown task 'sudoku'; known are countdown, chain-sum"):
        get_task("sudoku")


def test_questions_find_their_task_and_those_out_of_range_are_refused() -> None:
    assert find_task("What is 112 + 35 - 68?") == ("chain-sum", Puzzle(112, (35, -68)))
    assert find_task("Use 3, 7 and 12 to make 33")[0] == "countdown"
    with pytest.raises(ValueError, match="no task knows the question 'Hello'"):
        find_task("Hello")
    for split in ("train", "test"):
        for puzzle in puzzles(50, 1, split):
            check_range(puzzle)
    for text, reason in {
        "Compute 112 + 35 - 68 + 20 + 11 + 12": "16, 20 or 24 terms behind the first here, not 5",
        "Compute 112 + 5 - 68 + 20 + 12": "terms from 10 to 99",
        "Compute 780 + 90 - 68 + 20 + 12": "stays from 1 to 799",
    }.items():
        with pytest.raises(ValueError, match=reason):
            check_range(parse(text))
