"""Verifiers in processes of their own, which are killed if they do not come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import reasoning_gym

from lace.data.pipeline.item import Question, Rejection
from lace.data.pipeline.verifiers import VerifierPool, check_verifier, is_right

MINE = "data.pipeline.my_verifiers"


def question(verifier: str, answer: str | None = "x", **data: Any) -> Question:
    return Question(id="q", text="?", answer=answer, verifier=verifier, data=data, source="test")


@pytest.mark.parametrize(
    ("verifier", "expected", "answer", "right"),
    [
        ("exact", "Yes, it is", " yes,  it IS ", True),
        ("exact", "yes", "no", False),
        ("exact", "caf\u00e9", "cafe\u0301", True),
        ("exact", "", " ", False),
        ("math", "1/2", r"\frac{2}{4}", True),
        ("math", r"$\sqrt{8}$", r"2\sqrt{2}", True),
        ("math", "7", "The answer is $7$.", True),
        ("math", "7", "8", False),
        ("math", "7", r"\frac{", False),
        (f"{MINE}:even", None, "4", True),
        (f"{MINE}:even", None, "5", False),
    ],
)
def test_what_is_right(verifier: str, expected: str | None, answer: str, right: bool) -> None:
    assert is_right(verifier, question(verifier, expected).model_dump(), answer) is right


def test_reasoning_gym_scores_its_own_questions_and_gives_no_parts() -> None:
    task = reasoning_gym.create_dataset("chain_sum", seed=3, size=5)
    given = question("reasoning-gym", None, task="chain_sum", seed=3, index=4, config={}).model_dump()
    right = task[4]["answer"]
    assert is_right("reasoning-gym", given, f" {right} ")
    assert not is_right("reasoning-gym", given, f"The answer is {right}")
    assert not is_right("reasoning-gym", given, str(int(right) + 1))


def in_pool(verifier: str, seconds: float, *answers: str) -> list[bool | BaseException]:
    pool = VerifierPool([verifier], 1, seconds)

    async def work() -> list[bool | BaseException]:
        checks: list[Coroutine[Any, Any, bool]] = [pool.check(question(verifier), answer) for answer in answers]
        return await asyncio.gather(*checks, return_exceptions=True)

    try:
        return asyncio.run(work())
    finally:
        pool.close()


def test_a_hanging_verifier_is_killed_and_the_next_answer_is_checked() -> None:
    first, second = in_pool(f"{MINE}:hangs", 1.0, "hang", "4")
    assert isinstance(first, Rejection)
    assert first.reason == "verifier time-out"
    assert second is True


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dies", "verifier died"),
        ("even", "verifier failed: data.pipeline.my_verifiers:even: ValueError: invalid literal"),
        ("exits", "verifier failed: data.pipeline.my_verifiers:exits: SystemExit: 3"),
        ("raises_unreadable", "verifier failed: data.pipeline.my_verifiers:raises_unreadable: Unreadable: xxx"),
    ],
)
def test_a_verifier_that_dies_or_raises_rejects_the_item_alone(name: str, told: str) -> None:
    for found in in_pool(f"{MINE}:{name}", 60.0, "no number", "none either"):
        assert isinstance(found, Rejection)
        assert str(found).startswith(told)
        assert len(found.detail) < 600


@pytest.mark.parametrize("name", ["nothing", "data.pipeline.my_verifiers:odd", "no.such.module:f"])
def test_a_verifier_that_is_not_there_is_told_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="verifiers are exact, math, reasoning-gym, module:function"):
        check_verifier(name)
