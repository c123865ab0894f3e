"""Reading tags and answers, and choosing a thread."""

from __future__ import annotations

import pytest

from lace.engine.selection import choose_thread, read_answer, read_tag


@pytest.mark.parametrize(
    ("text", "tag", "answer"),
    [
        ("3 + 4 = 7 yes answer: 3 + 4 [[best]]", "best", "3 + 4"),
        ("answer: none [[fail]]", "fail", None),
        ("Answer: 12 [[success]] no, wait\nanswer:  13  \n[[best]]", "best", "13"),
        ("nothing to say", None, None),
        ("answer:", None, None),
        ("[[worst]] answer: 5", None, "5"),
    ],
)
def test_closing_words(text: str, tag: str | None, answer: str | None) -> None:
    assert (read_tag(text), read_answer(text)) == (tag, answer)


def test_the_only_claim_wins_even_against_a_majority() -> None:
    assert choose_thread(["success", "best", "success"], ["a", "b", "a"]) == (1, "best_tag")


@pytest.mark.parametrize("tags", [["best", "best", None], [None, "fail", "success"]])
def test_without_exactly_one_claim_the_majority_decides(tags: list[str | None]) -> None:
    assert choose_thread(tags, ["a", "b", "b"]) == (1, "majority")  # type: ignore[arg-type]


def test_silent_threads_do_not_vote() -> None:
    assert choose_thread([None] * 3, [None, None, "a"]) == (2, "majority")
    assert choose_thread([None] * 3, [None] * 3) == (0, "first")
