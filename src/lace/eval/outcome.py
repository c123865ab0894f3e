"""Judging one lattice: what its threads answered, and how exactly they worked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lace.engine.diversity import token_diversity
from lace.engine.result import LatticeResult, ThreadResult
from lace.engine.selection import majority
from lace.tasks.task import Puzzle, Task


@dataclass(frozen=True)
class Outcome:
    """What one lattice did on one puzzle."""

    acc: float
    """The chosen thread's answer is right."""
    mean: float
    """Share of threads with a right answer."""
    vote: float
    """The most frequent answer is right."""
    self_verified: float
    """The most frequent answer among threads that call themselves right is right."""
    passed: float
    """Some thread's answer is right: the oracle's choice."""
    tag_valid: float
    """Exactly one thread claims `[[best]]`."""
    diversity: float
    """Mean distance of the threads' token n-grams, 0..1."""
    tokens: int
    """Sampled by all threads together."""
    steps: int
    """Of decoding: the length of the longest thread, which is the latency."""
    seconds: float
    """Wall-clock time of its batch, divided by the puzzles in it."""
    equations: int
    """Steps that the threads wrote."""
    false_equations: int
    """Of these, with wrong arithmetic or an operand that is not at hand."""
    attempts: int
    """Ideas that the threads tried; 0 in a task without named ideas."""
    distinct_attempts: int


METRICS = {
    "acc": "acc",
    "mean@N": "mean",
    "vote@N": "vote",
    "self_verified": "self_verified",
    "pass@N": "passed",
    "tag_valid": "tag_valid",
    "diversity": "diversity",
}
"""Name in reports -> field of `Outcome`."""
YES_OR_NO = ("acc", "vote@N", "self_verified", "pass@N", "tag_valid")
"""Metrics with one yes or no per puzzle."""


def judge(task: Task, puzzle: Puzzle, result: LatticeResult, seconds: float) -> Outcome:
    """Checks every thread's answer and every written step."""
    answers = [thread.answer for thread in result.threads]
    right = [puzzle.check(answer) for answer in answers]
    reports = [task.read_trace(puzzle, thread.text) for thread in result.threads]
    tried = [attempt for report in reports for attempt in report.attempts]
    return Outcome(
        acc=float(right[result.chosen]),
        mean=sum(right) / len(right),
        vote=float(puzzle.check(majority(answers))),
        self_verified=float(puzzle.check(self_verified(result.threads))),
        passed=float(any(right)),
        tag_valid=float(sum(thread.tag == "best" for thread in result.threads) == 1),
        diversity=token_diversity([thread.token_ids for thread in result.threads]),
        tokens=result.completion_tokens,
        steps=result.steps,
        seconds=seconds,
        equations=sum(report.steps for report in reports),
        false_equations=sum(report.false_steps + report.illegal_steps for report in reports),
        attempts=len(tried),
        distinct_attempts=len(set(tried)),
    )


def self_verified(threads: Sequence[ThreadResult]) -> str | None:
    """The choice of independent threads that check themselves: the most frequent answer of those that close with
    `[[best]]` or `[[success]]`; where none of these answers, the most frequent of all."""
    claimed = majority([thread.answer for thread in threads if thread.tag in ("best", "success")])
    return majority([thread.answer for thread in threads]) if claimed is None else claimed
