"""Whether reasoning-gym takes an answer for right, without what some of its scorers do: hand the answer to `eval`.

The scorers of version 0.1.25 were read, all of them. Most compare texts and numbers. Four evaluate an answer that is
not literally right, for part of the score: such answers are compared here. Five have sympy parse the answer, which
evaluates it: they see only answers that are spelled as arithmetic or algebra, in which nothing but numbers, variables
and a few functions has a name. A task that is in none of these groups is refused.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

FULL_SCORE = 1.0
"""reasoning-gym gives parts of it for answers that merely contain the right one."""

SCORED = frozenset(
    {
        "ab", "acre", "advanced_geometry", "aiw", "arc_1d", "arc_agi", "base_conversion", "basic_arithmetic", "bf",
        "binary_alternation", "bitwise_arithmetic", "boxnet", "caesar_cipher", "calendar_arithmetic", "chain_sum",
        "circuit_logic", "codeio", "coin_flip", "color_cube_rotation", "complex_arithmetic", "count_bits",
        "count_primes", "course_schedule", "cryptarithm", "decimal_arithmetic", "decimal_chain_sum", "dice",
        "emoji_mystery", "family_relationships", "figlet_font", "fraction_simplification", "futoshiki",
        "game_of_life", "gcd", "graph_color", "group_anagrams", "gsm_symbolic", "isomorphic_strings", "jugs",
        "kakurasu", "knight_swap", "knights_knaves", "largest_island", "lcm", "leg_counting", "letter_counting",
        "letter_jumble", "list_functions", "mahjong_puzzle", "manipulate_matrix", "maze", "mini_sudoku",
        "modulo_grid", "needle_haystack", "number_filtering", "number_format", "number_sequence", "number_sorting",
        "palindrome_generation", "palindrome_partitioning", "path_star", "polynomial_equations", "pool_matrix",
        "power_function", "prime_factorization", "products", "propositional_logic", "quantum_lock", "ransom_note",
        "rearc", "rectangle_count", "rotate_matrix", "rotten_oranges", "rush_hour", "self_reference",
        "sentence_reordering", "shortest_path", "simple_equations", "simple_geometry", "sokoban", "spell_backward",
        "string_manipulation", "string_splitting", "string_synthesis", "sudoku", "survo", "syllogism",
        "time_intervals", "tower_of_hanoi", "tsumego", "word_ladder", "word_sequence_reversal", "word_sorting",
        "zebra_puzzles",
    }
)  # fmt: skip
"""Tasks whose scorers evaluate nothing of an answer."""

COMPARED = frozenset({"binary_matrix", "game_of_life_halting", "n_queens", "spiral_matrix", "string_insertion"})
"""Tasks whose answers are compared here, word by word. That of game_of_life_halting takes every text for right."""

_ARITHMETIC = re.compile(r"(?:[0-9]{1,9}(?![0-9])|[-+/()\s]|\*(?!\s*\*))*")
_NUMBER = r"[0-9]{1,20}(?![0-9])(?:\.[0-9]{1,20}(?![0-9]))?(?![A-Za-z.])"
_FUNCTIONS = "exp|log|ln|sqrt|sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|pi|Abs"
_NAME = rf"(?:{_FUNCTIONS}|[a-zA-Z])(?![A-Za-z0-9])"
_SMALL = r"[0-9]{1,3}(?![0-9])"
_POWER = rf"\*\*\s*(?:-?{_SMALL}|\(-?{_SMALL}(?:/{_SMALL})?\)|[a-z](?![A-Za-z0-9]))(?!\s*\*\*)"
_ALGEBRA = re.compile(rf"(?:{_NUMBER}|{_NAME}|{_POWER}|[-+/()\s]|\*(?!\s*\*))*")
_TURNS = re.compile(r"(?:[^0-9]|[0-9](?![0-9]))*")

SPELLED = {
    "countdown": _ARITHMETIC,
    "puzzle24": _ARITHMETIC,
    "polynomial_multiplication": _ALGEBRA,
    "simple_integration": _ALGEBRA,
    "intermediate_integration": _ALGEBRA,
    "rubiks_cube": _TURNS,  # it writes a turn out as often as the number behind it says
}
"""Tasks whose scorers see only answers of this spelling; exponents are small, since sympy would write them out."""


def check_task(task: str) -> None:
    """Raises ValueError, one line, for a task whose scorer may evaluate what it is given."""
    if task not in SCORED | COMPARED | SPELLED.keys():
        raise ValueError(f"the reasoning-gym task {task!r} is not among those whose scorers are known to be safe")


def is_right(data: dict[str, Any], answer: str) -> bool:
    """Whether an answer has the full score.

    Args:
        data: of the question: task, config, seed and index.
        answer: whatever a model says.

    Raises:
        ValueError: one line, for a task that is not known to be safe.
    """
    name, answer = data["task"], answer.strip()
    check_task(name)
    if name in SPELLED and not SPELLED[name].fullmatch(answer):
        return False
    task, entry = _entry(json.dumps(data, sort_keys=True))
    if name in COMPARED:
        accepted = entry["metadata"].get("valid_answers", [entry["answer"]])
        return any(answer.split() == each.split() for each in accepted)
    return bool(task.score_answer(answer, entry) >= FULL_SCORE)


@lru_cache(maxsize=16)  # a task is made for each question, so that more would be kept the longer a run goes on
def _entry(data: str) -> tuple[Any, Any]:
    """The reasoning-gym task and its question, which depends on seed and index alone."""
    from reasoning_gym import create_dataset

    values = json.loads(data)
    task = create_dataset(values["task"], seed=values["seed"], size=values["index"] + 1, **values["config"])
    return task, task[values["index"]]
