"""One lattice is judged exactly, by the verifiers of its task."""

from __future__ import annotations

import pytest

from lace.engine.result import LatticeResult, ThreadResult
from lace.engine.selection import Tag
from lace.eval.outcome import METRICS, YES_OR_NO, Outcome, judge, self_verified
from lace.tasks.countdown import Puzzle
from lace.tasks.task import get_task


def thread(index: int, text: str, tag: Tag | None, answer: str | None, ids: tuple[int, ...] = (1, 2)) -> ThreadResult:
    return ThreadResult(index, index + 1, text, list(ids), [-1.0] * len(ids), "eos", tag, answer)


def result(threads: list[ThreadResult], chosen: int) -> LatticeResult:
    return LatticeResult("a question", "lace", threads, chosen, "best_tag", 9, 6, 20, 0.5, [])


def test_countdown_is_judged_by_its_verifier() -> None:
    right, wrong = "( 7 * 3 ) + 12", "7 + 3 + 12"
    threads = [
        thread(0, f"(x*y)+z 7 * 3 = 21 , 21 + 12 = 33 yes answer: {right} [[success]]", "success", right),
        thread(1, f"(x*y)+z 7 * 3 = 22 , 22 + 12 = 34 no answer: {wrong} [[best]]", "best", wrong, (1, 3)),
        thread(2, "(x+y)+z 7 + 3 = 10 , 12 + 10 = 22 no answer: none [[fail]]", "fail", None),
    ]
    outcome = judge(get_task("countdown"), Puzzle((3, 7, 12), 33), result(threads, 1), 0.25)
    assert (outcome.acc, outcome.passed, outcome.tag_valid) == (0, 1, 1)
    assert outcome.mean == pytest.approx(1 / 3)
    assert (outcome.vote, outcome.self_verified) == (1, 1)  # the first of two equally frequent answers
    assert outcome.diversity == pytest.approx(2 / 3)  # two pairs of three differ
    assert (outcome.tokens, outcome.steps, outcome.seconds) == (6, 20, 0.25)
    assert (outcome.equations, outcome.false_equations) == (6, 1)
    assert (outcome.attempts, outcome.distinct_attempts) == (3, 2)


def test_chained_sums_have_steps_but_no_attempts() -> None:
    task = get_task("chain-sum")
    puzzle = task.parse("Compute 412 + 35 - 68")
    threads = [
        thread(0, "412 + 35 = 447 , 447 - 68 = 379 379 see 379 keep , answer: 379 [[best]]", "best", "379"),
        thread(1, "412 - 68 = 354 , 354 + 35 = 389 389 see 379 fix , answer: 379 [[success]]", "success", "379"),
    ]
    outcome = judge(task, puzzle, result(threads, 0), 0.25)
    assert (outcome.acc, outcome.mean, outcome.vote) == (1, 1, 1)
    assert (outcome.equations, outcome.false_equations, outcome.attempts) == (4, 1, 0)


def test_self_verification_counts_those_who_call_themselves_right() -> None:
    threads = [thread(n, "", tag, answer) for n, (tag, answer) in enumerate([
        ("fail", "1"), (None, "1"), ("fail", "1"), ("success", "2"), ("best", "3"), ("success", "3"),
    ])]  # fmt: skip
    assert self_verified(threads) == "3"
    assert self_verified(threads[:4]) == "2"
    assert self_verified(threads[:3]) == "1"  # nobody does: the plain majority
    assert self_verified([*threads[:3], thread(3, "", "best", None)]) == "1"
    assert self_verified([thread(0, "", "fail", None)]) is None


def test_every_metric_is_a_field() -> None:
    assert set(METRICS.values()) <= set(Outcome.__dataclass_fields__)
    assert set(YES_OR_NO) <= set(METRICS)
