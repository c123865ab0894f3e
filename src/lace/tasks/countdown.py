"""Countdown: combine every given number, each once, with + - * / to reach a target.

Puzzles and scores agree with reasoning-gym's `countdown` (same metadata, same notion of a right answer);
`tests/test_countdown.py` checks that against the package itself. On top of it this module knows what a search
*trace* is, and checks every written step exactly.

The arithmetic is that of a child's search: all values are positive integers up to `MAX_VALUE`, a difference is
taken larger minus smaller, and a quotient only where it is exact. Where an idea leads out of that, a trace says
`= none` and gives the idea up.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

from lace.tasks.task import Split, TraceReport, different

MAX_NUMBER = 20
"""Largest number that `generate` puts into a puzzle."""
MAX_VALUE = 100
"""Largest value of a step in a trace."""
MIN_TARGET, MAX_TARGET = 10, 100

OPERATORS = "+-*/"


def combine(operator: str, x: int, y: int) -> int | None:
    """The value of `x operator y`, larger operand first; None if it is no integer in 1..MAX_VALUE."""
    large, small = max(x, y), min(x, y)
    if operator == "+":
        value = large + small
    elif operator == "-":
        value = large - small
    elif operator == "*":
        value = large * small
    else:
        if small == 0 or large % small:
            return None
        value = large // small
    return value if 1 <= value <= MAX_VALUE else None


@dataclass(frozen=True)
class Puzzle:
    """Some numbers and the target to make of them."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The canonical question, e.g. `Use 3, 7 and 12 to make 33`."""
        listed = ", ".join(map(str, self.numbers[:-1]))
        return f"Use {listed} and {self.numbers[-1]} to make {self.target}"

    @classmethod
    def from_entry(cls, entry: dict[str, Any]) -> Puzzle:
        """Reads a reasoning-gym `countdown` entry."""
        return cls(tuple(entry["metadata"]["numbers"]), int(entry["metadata"]["target"]))

    def to_entry(self) -> dict[str, Any]:
        """The puzzle as a reasoning-gym `countdown` entry (its scorer accepts it)."""
        return {
            "question": self.prompt,
            "answer": next(solutions(self), None),
            "metadata": {
                "source_dataset": "countdown",
                "numbers": list(self.numbers),
                "target": self.target,
            },
        }

    @property
    def split(self) -> Split:
        """The part of the data it belongs to: a hash of the sorted numbers and the target, so that the parts are
        disjoint by construction, whatever the order of the numbers."""
        key = f"{sorted(self.numbers)}->{self.target}".encode()
        bucket = int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100
        return "train" if bucket < 75 else "validation" if bucket < 80 else "test"

    def check(self, answer: str | None) -> bool:
        """Whether the expression uses every number exactly once and equals the target, in exact arithmetic."""
        if not answer or len(answer) > 200 or not _ARITHMETIC.fullmatch(answer):
            return False
        try:
            value, used = _evaluate(ast.parse(answer.strip(), mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
            return False
        return used == Counter(self.numbers) and value == self.target


_LIST = r"(?P<numbers>\d+(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+)\d+)+)"
_QUESTIONS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"use (?:the numbers )?{_LIST} to (?:make|get|reach) (?P<target>\d+)",
        rf"using all the numbers {_LIST}, create an expression that equals (?P<target>\d+)",
        rf"find a way to make (?P<target>\d+) using all of these numbers: {_LIST}",
        rf"calculate (?P<target>\d+) using all of these numbers: {_LIST}",
    )
]


def parse(text: str) -> Puzzle:
    """Reads a question in our wording or in any of reasoning-gym's.

    Raises:
        ValueError: if the text is not a Countdown question.
    """
    first = text.strip().split("\n")[0]
    for pattern in _QUESTIONS:
        if match := pattern.fullmatch(first.strip().rstrip(".?!")):
            numbers = tuple(int(n) for n in re.findall(r"\d+", match["numbers"]))
            if len(numbers) < 2:
                break
            return Puzzle(numbers, int(match["target"]))
    raise ValueError(f"not a Countdown question: {first[:80]!r}; write for example 'Use 3, 7, 12 and 5 to make 58'")


_ARITHMETIC = re.compile(r"[\d\s()+*/-]+", re.ASCII)
"""Leaves no room for other spellings of numbers that Python reads (`0xC`, `1_2`), names or comments."""
_NODES = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _evaluate(node: ast.expr) -> tuple[Fraction, Counter[int]]:
    """Value and used numbers of an arithmetic syntax tree; ValueError for anything that is not arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value), Counter([node.value])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value, used = _evaluate(node.operand)
        return value if isinstance(node.op, ast.UAdd) else -value, used
    if isinstance(node, ast.BinOp) and type(node.op) in _NODES:
        (x, used_x), (y, used_y) = _evaluate(node.left), _evaluate(node.right)
        operator = _NODES[type(node.op)]
        value = x + y if operator == "+" else x - y if operator == "-" else x * y if operator == "*" else x / y
        return value, used_x + used_y
    raise ValueError("not plain arithmetic")


# --- ideas: the named ways to combine numbers -------------------------------------------------------------------


@dataclass(frozen=True)
class Equation:
    """One written step, `large operator small = value`; the value is None where there is none to go on with."""

    large: int
    operator: str
    small: int
    value: int | None

    def __str__(self) -> str:
        return f"{self.large} {self.operator} {self.small} = {'none' if self.value is None else self.value}"


@dataclass(frozen=True)
class Attempt:
    """One idea carried out, as far as it goes: its names (one for 3 numbers, two for 4) and the equations behind each
    name. An idea that fails has `none` in its last equation, no value, and no names after the one that failed."""

    names: tuple[str, ...]
    equations: tuple[tuple[Equation, ...], ...]
    expression: str | None

    @property
    def value(self) -> int | None:
        return self.equations[-1][-1].value


def _triple_ideas() -> dict[str, tuple[tuple[int, int, int], str, str]]:
    """Name -> (order of the numbers, first operator, second operator) of every idea for three numbers x, y, z.

    Only one of several spellings of the same expression is kept: `(x-y)+z` is `(x+z)-y`, `(x/y)*z` is `(x*z)/y`,
    and so on; 32 ideas remain.
    """
    ideas: dict[str, tuple[tuple[int, int, int], str, str]] = {}
    orders = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    for first, second in itertools.product(OPERATORS, OPERATORS):
        if first in "-/" and (first in "+-") == (second in "+-"):
            continue  # another spelling of a sum's difference or a product's quotient
        for order in orders[:1] if first == second else orders:
            i, j, k = ("xyz"[n] for n in order)
            ideas[f"({i}{first}{j}){second}{k}"] = (order, first, second)
    return ideas


TRIPLE_IDEAS = _triple_ideas()
PAIR_IDEAS: dict[str, tuple[int, int, str]] = {
    f"{'abcd'[i]}{operator}{'abcd'[j]}": (i, j, operator)
    for i, j in itertools.combinations(range(4), 2)
    for operator in OPERATORS
}
"""The first steps for four numbers a, b, c, d; then x is its result and y, z the two numbers left."""

_Term = tuple[int, str]  # a value, and the expression that made it


def _apply(operator: str, x: _Term, y: _Term) -> tuple[Equation, _Term | None]:
    large, small = (x, y) if x[0] >= y[0] else (y, x)
    value = combine(operator, x[0], y[0])
    equation = Equation(large[0], operator, small[0], value)
    if value is None:
        return equation, None
    parts = [f"( {e} )" if " " in e else e for _, e in (large, small)]
    return equation, (value, f"{parts[0]} {operator} {parts[1]}")


def _carry_out_triple(name: str, terms: Sequence[_Term]) -> tuple[tuple[Equation, ...], str | None]:
    (i, j, k), first, second = TRIPLE_IDEAS[name]
    one, result = _apply(first, terms[i], terms[j])
    if result is None:
        return (one,), None
    two, result = _apply(second, result, terms[k])
    return (one, two), result and result[1]


@functools.lru_cache(maxsize=1 << 16)
def carry_out(numbers: tuple[int, ...], names: tuple[str, ...]) -> Attempt:
    """What becomes of an idea with these numbers: for three numbers one of `TRIPLE_IDEAS`, for four one of
    `PAIR_IDEAS` and then, as far as it is reached, one of `TRIPLE_IDEAS` for its result and the other two numbers.

    Raises:
        ValueError: for another count of numbers.
    """
    terms = [(n, str(n)) for n in numbers]
    if len(numbers) == 3:
        steps, expression = _carry_out_triple(names[0], terms)
        return Attempt(names, (steps,), expression)
    if len(numbers) != 4:
        raise ValueError(f"ideas are named for 3 or 4 numbers, not for {len(numbers)}")
    i, j, operator = PAIR_IDEAS[names[0]]
    step, result = _apply(operator, terms[i], terms[j])
    if result is None or len(names) == 1:
        return Attempt(names[:1], ((step,),), None)
    steps, expression = _carry_out_triple(names[1], [result, *(t for n, t in enumerate(terms) if n not in (i, j))])
    return Attempt(names, ((step,), steps), expression)


def check_range(puzzle: Puzzle) -> None:
    """Refuses puzzles that `generate` does not draw.

    Raises:
        ValueError: for another count of numbers than three, or too large ones.
    """
    if len(puzzle.numbers) != 3:
        raise ValueError(f"Countdown takes 3 numbers here, not {len(puzzle.numbers)}")
    if not all(1 <= n <= MAX_NUMBER for n in puzzle.numbers) or not 1 <= puzzle.target <= MAX_VALUE:
        raise ValueError(f"Countdown takes numbers from 1 to {MAX_NUMBER} and targets up to {MAX_VALUE} here")


@functools.lru_cache(maxsize=1 << 10)
def attempts(numbers: tuple[int, ...]) -> list[Attempt]:
    """Every idea that can be carried out to the end, whatever the target, in a fixed order.

    Raises:
        ValueError: if there are not three or four numbers.
    """
    names: Iterable[tuple[str, ...]] = itertools.product(TRIPLE_IDEAS)
    if len(numbers) != 3:
        names = itertools.product(PAIR_IDEAS, TRIPLE_IDEAS)
    return [attempt for each in names if (attempt := carry_out(numbers, each)).expression is not None]


def solutions(puzzle: Puzzle) -> Iterator[str]:
    """The expressions among `attempts` that solve the puzzle."""
    return (a.expression for a in attempts(puzzle.numbers) if a.value == puzzle.target and a.expression)


def generate(rng: Random, split: Split, numbers: int = 3) -> Puzzle:
    """Draws a solvable puzzle of one split: numbers in 1..MAX_NUMBER, target uniform in MIN_TARGET..MAX_TARGET.

    Raises:
        ValueError: if `numbers` is not 3 or 4.
    """
    while True:
        drawn = tuple(rng.randint(1, MAX_NUMBER) for _ in range(numbers))
        puzzle = Puzzle(drawn, rng.randint(MIN_TARGET, MAX_TARGET))
        if puzzle.split == split and any(True for _ in solutions(puzzle)):
            return puzzle


def puzzles(n: int, seed: int, split: Split = "test", numbers: int = 3) -> list[Puzzle]:
    """`n` different puzzles (different even up to the order of their numbers).

    Raises:
        ValueError: if the split does not hold that many.
    """
    rng = Random(f"{seed}/{split}/{numbers}")

    def draw() -> tuple[tuple[tuple[int, ...], int], Puzzle]:
        puzzle = generate(rng, split, numbers)
        return (tuple(sorted(puzzle.numbers)), puzzle.target), puzzle

    return different(draw, n, f"the {split} split of {numbers} numbers")


# --- traces -----------------------------------------------------------------------------------------------------

_TRACE = re.compile(
    r"(?P<name>[a-d][-+*/][a-d]|\([xyz][-+*/][xyz]\)[-+*/][xyz])|(?P<verdict>\b(?:yes|no)\b)|(?P<see>\bsee\b)"
    r"|(?P<x>\d+) (?P<operator>[-+*/]) (?P<y>\d+) = (?P<value>\d+|none)"
)


def read_trace(puzzle: Puzzle, text: str) -> TraceReport:
    """Checks every step of a thread's text: the arithmetic, and that each number is used at most once an attempt."""
    body = text.split("answer:")[0]
    width = len(puzzle.numbers) - 2  # names an attempt has
    steps = false_steps = illegal = 0
    tried: list[tuple[str, ...]] = []
    names: list[str] = []
    said_again: list[str] = []  # names that are no new attempt if they come next
    following = False
    hand: Counter[int] = Counter(puzzle.numbers)
    for token in _TRACE.finditer(body):
        if token["see"]:  # the name before it was another thread's, and if it stands there twice, its own too
            if len(names) == width and said_again and not following:
                tried.pop()
            following = True
        elif token["verdict"]:  # `yes` is followed by the attempt's names once more
            if names and len(names) < width and not following:
                tried.append(tuple(names))
            names, said_again, following = [], names if token["verdict"] == "yes" else [], False
        elif name := token["name"]:
            if said_again[:1] == [name]:
                del said_again[0]
                continue
            said_again = [name]  # every name is written twice in a row
            if not names or len(names) == width or name in PAIR_IDEAS:
                names, hand = [], Counter(puzzle.numbers)  # the first name of an attempt takes all numbers again
            names.append(name)
            if len(names) == width and not following:
                tried.append(tuple(names))
        else:
            steps += 1
            said_again = []
            if len(token[0]) > 100:  # Python refuses to read integers of thousands of digits
                false_steps += 1
                continue
            x, y, value = int(token["x"]), int(token["y"]), None if token["value"] == "none" else int(token["value"])
            needed = Counter([x, y])
            if (x < y and token["operator"] in "-/") or combine(token["operator"], x, y) != value:
                false_steps += 1
            elif any(hand[n] < count for n, count in needed.items()):
                illegal += 1
            hand = hand - needed + Counter([] if value is None else [value])
    return TraceReport(steps, false_steps, illegal, tuple(tried))
