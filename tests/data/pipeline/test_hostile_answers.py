"""Answers that are code: no verifier may execute them, of whatever task, in whatever disguise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from lace.data.pipeline import gym_scores
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.run import run_pipeline
from lace.data.pipeline.verifiers import is_right
from teachers.server import Answer, Request, Server

TASKS = sorted(gym_scores.SCORED | gym_scores.COMPARED | gym_scores.SPELLED.keys())
EVALUATED = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Tasks whose scorers run code in an answer, if they are given it."""


def calls(marker: Path) -> list[str]:
    """Expressions that would make the file."""
    path = str(marker)
    spelled = "+".join(f"chr({ord(letter)})" for letter in f"open({path!r},'w')")
    return [
        f"open({path!r},'w')",
        f"__import__('os').system('touch {path}')",
        f"exec({spelled})",
        f"eval({spelled})",
        f"getattr(open,'__call__')({path!r},'w')",
        f"(lambda: open({path!r},'w'))()",
        f"().__class__.__base__.__subclasses__()[-1].__init__.__globals__['__builtins__']['open']({path!r},'w')",
        f"sympify({f'open({path!r},chr(119))'!r})",
        f"S({f'open({path!r},chr(119))'!r})",
        f"\uff4fpen({path!r},'w')",
        f"(x:=open({path!r},'w'))",
    ]


def attacks(marker: Path) -> list[str]:
    """The same in the forms in which tasks want answers."""
    forms = ("?", "[?]", "[str(?)]", "[[?]]", "1+?", "0 if ? else 1", "1 #\n?", "1;?", "f'{?}'", "{?: 1}")
    return [form.replace("?", call) for call in calls(marker) for form in forms]


def in_mathematics(call: str) -> list[str]:
    """One of them where LaTeX spells text, names and arguments."""
    forms = (
        "?", "$?$", "${?}$", r"\boxed{?}", r"$\text{?}$", r"$\mathrm{?}$", r"$\operatorname{?}$", r"$\variable{?}$",
        r"$x_{?}$", r"$\frac{?}{2}$", r"$f(?)$", r"$\gcd(?, 2)$", r"$\operatorname{eye}(?)$", r"$\{?, 1\}$",
        r"$\begin{matrix} ? \end{matrix}$", r"$\sum_{i=?}^{3} i$", r"$\log_{?} 2$", r"$x = ?$", "The answer is ?.",
    )  # fmt: skip
    return [form.replace("?", call) for form in forms]


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that must not be there in the end."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def question(task: str) -> dict[str, Any]:
    data = {"task": task, "seed": 0, "index": 0, "config": {}}
    return {"id": "q", "text": "?", "answer": None, "verifier": "reasoning-gym", "data": data, "source": "test"}


def scored(given: dict[str, Any], answer: str) -> bool:
    """Whether it is right; some scorers raise, which rejects an item and executes nothing."""
    try:
        return is_right("reasoning-gym", given, answer)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return False


def test_every_task_of_the_library_was_read() -> None:
    assert version("reasoning-gym") == "0.1.25", "read the scorers again"
    assert set(TASKS) == set(DATASETS) - {"composite"}
    with pytest.raises(ValueError, match="'composite' is not among those whose scorers are known to be safe"):
        is_right("reasoning-gym", question("composite"), "1")


@pytest.mark.parametrize("task", TASKS)
def test_no_task_executes_an_answer(task: str, marker: Path) -> None:
    given = question(task)
    for attack in attacks(marker):
        scored(given, attack)
        assert not marker.exists(), attack


@pytest.mark.parametrize("task", EVALUATED)
def test_the_attacks_are_real(task: str, tmp_path: Path) -> None:
    dataset = reasoning_gym.create_dataset(task, seed=0, size=1)
    marker = tmp_path / "executed"
    entry = dataset[0]
    for attack in attacks(marker):
        with suppress(TypeError, AttributeError):
            dataset.score_answer(attack, entry)
        if marker.exists():
            return
    raise AssertionError(f"no attack reaches {task}")


@pytest.mark.parametrize("n", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 11))])
def test_mathematics_executes_no_answer(n: int, marker: Path) -> None:
    given = {"answer": "4"}
    for attack in in_mathematics(calls(marker)[n]):
        assert not is_right("math", given, attack), attack
        assert not marker.exists(), attack


@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [
        ("countdown", None, "1 + 1"),
        ("puzzle24", None, "2**2**2**2"),
        ("polynomial_multiplication", None, "x**2"),
        ("simple_integration", None, "9**9**9**9**9"),
        ("intermediate_integration", None, "exp(x) + C"),
        ("spiral_matrix", None, "[1, 2]"),
        ("binary_matrix", None, "0 0"),
        ("n_queens", None, "Q _"),
        ("string_insertion", None, "['A']"),
        ("game_of_life_halting", "True", "False"),
        ("rubiks_cube", None, "R999999999"),
    ],
)
def test_right_answers_are_right_still(task: str, right: str | None, wrong: str) -> None:
    given = question(task)
    answer = right or reasoning_gym.create_dataset(task, seed=0, size=1)[0]["answer"]
    if answer is not None:
        assert is_right("reasoning-gym", given, answer)
    assert not is_right("reasoning-gym", given, wrong)


def test_a_run_with_a_hostile_teacher_executes_nothing(make_config: Callable[..., DataConfig], marker: Path) -> None:
    count = [0]

    def hostile(request: Request) -> Answer:
        count[0] += 1
        words = " ".join(f"{word}{count[0]}" for word in ("some", "words", "that", "differ", "every", "time"))
        answer = f"[str(open({str(marker)!r},'w'))]"
        return Answer(json.dumps({"solution": words, "answer": answer, "summary": words}))

    source = {"kind": "reasoning-gym", "task": "spiral_matrix", "size": 2}
    with Server(hostile) as server:
        config = make_config(server.url, questions={"sources": [source]}, solutions={"max_calls": 3})
        run_pipeline(config)
    (outcomes,) = config.run.out.glob("stages/*-verify-*/outcomes.jsonl")
    assert [line["reason"] for line in read_lines(outcomes)] == ["no path is right"] * 2
