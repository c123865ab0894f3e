"""Solves two tasks of reasoning-gym whose answers are grids (mini_sudoku, rotate_matrix), in several ways."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from random import Random

from lace.data.pipeline.text import read_spelled

Grid = list[list[str]]
_SUDOKU = re.compile(r"Solve this 4x4 Mini Sudoku puzzle:\n((?:[_1-4] [_1-4] [_1-4] [_1-4]\n){4})")
_MATRIX = re.compile(r"Rotate the matrix below by (\d+) degrees clockwise:\n((?:[\d ]+\n?)+)")


@dataclass(frozen=True)
class Puzzle:
    """What is asked for, and the ways in which it can be told."""

    right: Grid
    ways: tuple[str, ...]


@cache
def read(question: str) -> Puzzle | None:
    """The puzzle; None if it is no such question."""
    if found := _SUDOKU.search(question):
        return Puzzle(_sudoku(_grid(found[1])), ("row", "column", "box", "digit"))
    if found := _MATRIX.search(question):
        grid = _grid(found[2])
        for _ in range(int(found[1]) // 90 % 4):
            grid = [list(line) for line in zip(*grid[::-1], strict=True)]
        return Puzzle(grid, ("row", "column", "corner"))
    return None


def _grid(text: str) -> Grid:
    return [line.split() for line in text.strip().splitlines()]


def _sudoku(given: Grid) -> Grid:
    lines = [
        [line for line in permutations("1234") if all(a in ("_", b) for a, b in zip(row, line, strict=True))]
        for row in given
    ]
    groups = [[(r, c) for r in range(4)] for c in range(4)]
    groups += [[(r + y, c + x) for y in (0, 1) for x in (0, 1)] for r in (0, 2) for c in (0, 2)]
    (right,) = [g for g in product(*lines) if all(len({g[r][c] for r, c in group}) == 4 for group in groups)]
    return [list(line) for line in right]


def solve(question: str, turn: int, errors: float) -> dict[str, str] | None:
    """A path by the way of this turn; None for a question of another kind."""
    puzzle = read(question)
    if puzzle is None:
        return None
    rng, grid = Random(f"{question}/{turn}"), [list(row) for row in puzzle.right]
    if rng.random() < errors:
        row = rng.choice(grid)
        row.insert(0, row.pop())
    way = Random(question).sample(puzzle.ways, len(puzzle.ways))[turn % len(puzzle.ways)]
    answer = "\n".join(" ".join(row) for row in grid)
    solution = "\n".join([f"I go {way} by {way}.", *_lines(grid, way), "So all of it reads", answer])
    return {"solution": solution, "answer": answer, "summary": f"Goes {way} by {way}."}


def _lines(grid: Grid, way: str) -> list[str]:
    size = range(len(grid))
    if way == "row":
        return [f"Row {r + 1} must be {' '.join(grid[r])}." for r in size]
    if way == "column":
        return [f"Downwards in column {c + 1} there come {', '.join(row[c] for row in grid)}." for c in size]
    if way == "box":
        boxes = product((0, 2), (0, 2))
        return [
            f"The box at {r + 1}/{c + 1} takes {grid[r][c : c + 2]} over {grid[r + 1][c : c + 2]}." for r, c in boxes
        ]
    if way == "digit":
        return [f"Where is {d}? In columns {' and '.join(str(row.index(d) + 1) for row in grid)}." for d in "1234"]
    return [f"From corner {n + 1} on along the edge: {'-'.join(grid[n][n:])}!" for n in size]


def is_right(question: str, answer: str) -> bool:
    """Whether an answer to such a question is right."""
    puzzle = read(question)
    assert puzzle is not None
    return _grid(read_spelled(answer)) == puzzle.right


def mistake(question: str, step: str) -> str | None:
    """What is wrong with a step that names a row."""
    puzzle = read(question)
    assert puzzle is not None
    found = re.match(r"Row (\d+) must be ([\d ]+)\.", step)
    if found is None or found[2].split() == puzzle.right[int(found[1]) - 1]:
        return None
    return f"row {found[1]} is {' '.join(puzzle.right[int(found[1]) - 1])}"
