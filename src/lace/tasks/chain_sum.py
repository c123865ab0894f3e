"""Chained sums: add and subtract a row of numbers, four at a time, where a slip early on spoils all that follows.

Puzzles and scores agree with reasoning-gym's `chain_sum`; `tests/test_chain_sum.py` checks that against the package
itself. A *trace* says the thread's label and the route that it takes, adds the terms in blocks of four in the order
of the route, and ends each block with the value that stands and a verdict:

    7 see 1 , 112 + 35 = 147 , 147 - 68 = 79 , 79 + 20 = 99 , 99 + 11 = 110 110 see 110 ok , ...

A thread that looks at others says `see` before what it takes from them. The value of a block is said twice, and then
the value from which the thread goes on. `ok`: nobody was seen to have another; `keep`: it is the thread's own, against
another thread's; `fix`: the thread's own was wrong, and this one replaces it. Values are whole numbers from 1 to
`MAX_VALUE`, whichever order the terms of a block are taken in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from lace.tasks.task import Split, TraceReport, different

MAX_VALUE = 799
"""Largest value of a step in a trace."""
MIN_TERM, MAX_TERM = 10, 99
BLOCK = 4
"""Terms that are added between two verdicts."""
MIN_BLOCKS, MAX_BLOCKS = 4, 6
ROUTES = (
    (0, 1, 2, 3),
    (1, 2, 3, 0),
    (2, 3, 0, 1),
    (3, 0, 1, 2),
    (3, 2, 1, 0),
    (2, 1, 0, 3),
    (1, 0, 3, 2),
    (0, 3, 2, 1),
)
"""Orders in which the terms of a block are added. The first four have no sum in common, all eight at most one by two:
threads on different routes do not make the same mistake."""
VERDICTS = ("ok", "keep", "fix")


def in_range(value: int, block: Sequence[int]) -> bool:
    """Whether all values from `value` on stay from 1 to `MAX_VALUE`, in whichever order the block's terms are added."""
    some = (taken for count in range(len(block) + 1) for taken in combinations(block, count))
    return all(1 <= value + sum(taken) <= MAX_VALUE for taken in some)


def stays_in_range(value: int, blocks: Sequence[Sequence[int]]) -> bool:
    """The same for several blocks of terms, one after the other."""
    for block in blocks:
        if not in_range(value, block):
            return False
        value += sum(block)
    return True


@dataclass(frozen=True)
class Puzzle:
    """A first number, and signed terms to add to it."""

    start: int
    terms: tuple[int, ...]

    @property
    def expression(self) -> str:
        return " ".join([str(self.start), *(f"{'-' if t < 0 else '+'} {abs(t)}" for t in self.terms)])

    @property
    def prompt(self) -> str:
        """The canonical question, e.g. `Compute 112 + 35 - 68`."""
        return f"Compute {self.expression}"

    @property
    def answer(self) -> int:
        return self.start + sum(self.terms)

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """The terms, `BLOCK` at a time."""
        return [self.terms[n : n + BLOCK] for n in range(0, len(self.terms), BLOCK)]

    @property
    def split(self) -> Split:
        """The part of the data it belongs to, by a hash: the parts are disjoint by construction."""
        bucket = int.from_bytes(hashlib.sha256(self.expression.encode()).digest()[:4], "big") % 100
        return "train" if bucket < 75 else "validation" if bucket < 80 else "test"

    def check(self, answer: str | None) -> bool:
        """Whether the answer is the sum, written as a whole number."""
        return (
            answer is not None
            and re.fullmatch(r"-?\d{1,9}", answer.strip()) is not None
            and (int(answer) == self.answer)
        )

    def to_entry(self) -> dict[str, Any]:
        """The puzzle as a reasoning-gym `chain_sum` entry (its scorer accepts it)."""
        return {
            "question": f"State the final answer to the following arithmetic problem: {self.expression} =",
            "answer": str(self.answer),
            "metadata": {"source_dataset": "chain_sum", "expression": self.expression},
        }


_QUESTION = re.compile(
    r"(?:compute|calculate|what is|state the final answer to the following arithmetic problem:)\s*"
    r"(?P<expression>\d{1,9}(?:\s*[-+]\s*\d{1,9})+)\s*=?\s*[.?]?",
    re.IGNORECASE,
)


def parse(text: str) -> Puzzle:
    """Reads a question in our wording or in reasoning-gym's.

    Raises:
        ValueError: if the text is no chained sum.
    """
    match = _QUESTION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a chained sum: {text.strip()[:80]!r}; write for example 'Compute 112 + 35 - 68'")
    start, *terms = (int(term.replace(" ", "")) for term in re.findall(r"[-+]?\s*\d+", match["expression"]))
    return Puzzle(start, tuple(terms))


def check_range(puzzle: Puzzle) -> None:
    """Refuses puzzles that `generate` does not draw.

    Raises:
        ValueError: for another count of terms, or values out of range.
    """
    if not all(MIN_TERM <= abs(term) <= MAX_TERM for term in puzzle.terms):
        raise ValueError(f"a chained sum has terms from {MIN_TERM} to {MAX_TERM} here")
    if not stays_in_range(puzzle.start, puzzle.blocks):
        raise ValueError(f"a chained sum stays from 1 to {MAX_VALUE} here, in whichever order {BLOCK} terms are added")
    counts = [BLOCK * blocks for blocks in range(MIN_BLOCKS, MAX_BLOCKS + 1)]
    if len(puzzle.terms) not in counts:
        some = f"{', '.join(map(str, counts[:-1]))} or {counts[-1]}"
        raise ValueError(f"a chained sum has {some} terms behind the first here, not {len(puzzle.terms)}")


def generate(rng: Random, split: Split) -> Puzzle:
    """Draws a puzzle of one split: a start in 20..`MAX_VALUE` - 20, `MIN_BLOCKS` to `MAX_BLOCKS` blocks of terms."""
    while True:
        start = value = rng.randint(20, MAX_VALUE - 20)
        terms: list[int] = []
        blocks = rng.randint(MIN_BLOCKS, MAX_BLOCKS)
        while len(terms) < BLOCK * blocks:
            block = [rng.choice((-1, 1)) * rng.randint(MIN_TERM, MAX_TERM) for _ in range(BLOCK)]
            if in_range(value, block):
                terms += block
                value += sum(block)
        puzzle = Puzzle(start, tuple(terms))
        if puzzle.split == split:
            return puzzle


def puzzles(n: int, seed: int, split: Split = "test") -> list[Puzzle]:
    """`n` different puzzles."""
    rng = Random(f"{seed}/{split}/chain-sum")

    def draw() -> tuple[str, Puzzle]:
        puzzle = generate(rng, split)
        return puzzle.expression, puzzle

    return different(draw, n, f"the {split} split of chained sums")


_STEP = re.compile(r"(?P<x>\d+) (?P<sign>[-+]) (?P<y>\d+) = (?P<value>\d+)|(?P<stands>\d+) (?:ok|keep|fix)")


def read_trace(puzzle: Puzzle, text: str) -> TraceReport:
    """Checks every step: the arithmetic, that it goes on from the value at hand, and that each term of a block is added
    once. The value before a verdict becomes the value at hand, right or wrong."""
    steps = false_steps = illegal = 0
    blocks = iter(puzzle.blocks)
    hand, left = puzzle.start, list(next(blocks, ()))
    for token in _STEP.finditer(text.split("answer:")[0]):
        if len(token[0]) > 60:  # Python refuses to read integers of thousands of digits
            steps, false_steps = steps + 1, false_steps + 1
        elif token["stands"]:
            hand, left = int(token["stands"]), list(next(blocks, ()))
        else:
            steps += 1
            x, y, value = int(token["x"]), int(token["y"]), int(token["value"])
            term = -y if token["sign"] == "-" else y
            if x + term != value:
                false_steps += 1
            elif x != hand or term not in left:
                illegal += 1
            if term in left:
                left.remove(term)
            hand = value
    return TraceReport(steps, false_steps, illegal)
