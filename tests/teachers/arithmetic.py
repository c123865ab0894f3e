"""Solves the arithmetic of reasoning-gym (chain_sum, basic_arithmetic) in several ways, at times with a slip."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from random import Random

_QUESTION = re.compile(r"[-+*/() \d]*\d[-+*/() \d]*(?==|\.|\?|$)")
_EQUATION = re.compile(r"(-?\d+) ([-+*/]) \(?(-?\d+)\)? (?:=|is|makes|gives) (-?\d+)")


def expression(question: str) -> str | None:
    """The sum that is asked for; None if it is no such question."""
    found: list[str] = [text.strip() for text in _QUESTION.findall(question) if re.search(r"\d\)? *[-+*/]", text)]
    try:
        ast.parse(found[-1], mode="eval")
    except (IndexError, SyntaxError):
        return None
    return found[-1]


def value(text: str) -> int:
    """The value of an expression of whole numbers."""
    result = _value(ast.parse(text, mode="eval").body)
    assert result.denominator == 1, text
    return int(result)


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand) if isinstance(node.op, ast.USub) else _value(node.operand)
    assert isinstance(node, ast.BinOp)
    x, y = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Add):
        return x + y
    if isinstance(node.op, ast.Sub):
        return x - y
    return x * y if isinstance(node.op, ast.Mult) else x / y


def terms(text: str) -> tuple[list[int], list[str]]:
    """The signed terms of a sum, and a line for each that had to be worked out first."""
    lines: list[str] = []

    def walk(node: ast.AST, sign: int) -> list[int]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            other = -sign if isinstance(node.op, ast.Sub) else sign
            return [*walk(node.left, sign), *walk(node.right, other)]
        if isinstance(node, ast.BinOp):
            lines.append(f"The part {ast.unparse(node)} comes to {_value(node)}.")
        result = _value(node)
        if result.denominator != 1:
            raise ValueError("a part is no whole number")
        return [sign * int(result)]

    return walk(ast.parse(text, mode="eval").body, 1), lines


def in_order(numbers: list[int], slip: Callable[[int], int]) -> tuple[list[str], int]:
    total, lines = numbers[0], [f"I keep a running total, and it begins at {numbers[0]}."]
    for number in numbers[1:]:
        before, total = total, slip(total + number)
        sign = "-" if number < 0 else "+"
        lines.append(f"Next comes {number}: {before} {sign} {abs(number)} = {total}.")
    return lines, total


def from_the_back(numbers: list[int], slip: Callable[[int], int]) -> tuple[list[str], int]:
    lines, total = ["Order does not matter, so let me start at the far end."], numbers[-1]
    for number in reversed(numbers[:-1]):
        before, total = total, slip(total + number)
        lines.append(f"To {before} I put {number}, which leaves {total}.")
    return lines, total


def by_sign(numbers: list[int], slip: Callable[[int], int]) -> tuple[list[str], int]:
    gains, losses = [n for n in numbers if n > 0], [-n for n in numbers if n < 0]
    up, down = slip(sum(gains)), slip(sum(losses))
    lines = [
        "Separate what is added from what is taken away.",
        f"Added: {', '.join(map(str, gains)) or 'nothing'}; together {up}.",
        f"Taken away: {', '.join(map(str, losses)) or 'nothing'}; together {down}.",
        f"The difference: {up} - {down} = {up - down}.",
    ]
    return lines, up - down


def by_digits(numbers: list[int], slip: Callable[[int], int]) -> tuple[list[str], int]:
    tens = [(abs(n) // 10 * 10) * (1 if n >= 0 else -1) for n in numbers]
    ones = [n - ten for n, ten in zip(numbers, tens, strict=True)]
    large, small = slip(sum(tens)), slip(sum(ones))
    lines = [
        "Cut every number into its full tens and its last digit, and collect each kind on its own.",
        f"Full tens: {' and '.join(map(str, tens))}. They come to {large}.",
        f"Last digits: {' and '.join(map(str, ones))}. They come to {small}.",
        f"Both again in one: {large} + {small} = {large + small}.",
    ]
    return lines, large + small


def by_rounding(numbers: list[int], slip: Callable[[int], int]) -> tuple[list[str], int]:
    rounded = [round(n, -1) for n in numbers]
    rough, error = sum(rounded), slip(sum(numbers) - sum(rounded))
    lines = [
        "Estimate first: each figure goes to the nearest ten.",
        f"So {', '.join(f'{n} becomes {r}' for n, r in zip(numbers, rounded, strict=True))}.",
        f"The estimate is {rough}, and rounding has cost {error} altogether.",
        f"Corrected: {rough} + {error} = {rough + error}.",
    ]
    return lines, rough + error


WAYS: dict[str, Callable[[list[int], Callable[[int], int]], tuple[list[str], int]]] = {
    "a running total from left to right": in_order,
    "gains and losses apart": by_sign,
    "backwards from the last number": from_the_back,
    "tens and digits apart": by_digits,
    "an estimate that is corrected": by_rounding,
}


def solve(question: str, turn: int, errors: float) -> dict[str, str] | None:
    """A path by the way of this turn; None for a question of another kind."""
    text = expression(question)
    if text is None:
        return None
    rng = Random(f"{question}/{turn}")
    names = Random(question).sample(sorted(WAYS), len(WAYS))
    name = names[turn % len(names)]
    slips = [rng.random() < errors]

    def slip(right: int) -> int:
        if slips[0] and rng.random() < 0.7:
            slips[0] = False
            return right + rng.choice((-10, -1, 1, 10))
        return right

    try:
        numbers, before = terms(text)
    except ValueError:
        return None
    lines, result = WAYS[name](numbers, slip)
    lines = [*before, *lines, f"So the result is {result}."]
    summary = f"Uses {name} and arrives at {result}."
    return {"solution": "\n".join(lines), "answer": str(result), "summary": summary}


def is_right(question: str, answer: str) -> bool:
    """Whether an answer to such a question is right."""
    text = expression(question)
    assert text is not None
    return answer.strip() == str(value(text))


def mistake(question: str, step: str) -> str | None:
    """What is wrong with a step, as far as its own equations tell."""
    for x, sign, y, result in _EQUATION.findall(step):
        right = value(f"{x} {sign} ({y})")
        if right != int(result):
            return f"{x} {sign} {y} is {right} and not {result}"
    return None
