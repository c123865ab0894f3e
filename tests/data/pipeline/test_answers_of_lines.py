"""Answers of several lines: kept up to the verifier, written in one line by a thread, and right in both forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import reasoning_gym
from rich.console import Console

from byte_tokenizer import byte_tokenizer
from lace.cli.data_view import print_item
from lace.data.pipeline.config import DataConfig, ReasoningGymSource
from lace.data.pipeline.item import Item, Question
from lace.data.pipeline.item import Path as ThreadPath
from lace.data.pipeline.outcomes import read_items
from lace.data.pipeline.run import run_pipeline
from lace.data.pipeline.sources import normalise, read_source
from lace.data.pipeline.text import one_line, read_spelled, spell_answer, tidy
from lace.data.pipeline.verifiers import is_right
from lace.data.stages.pass_rate import read_answer
from lace.data.stages.steps import states
from lace.engine.selection import read_answer as read_closing
from teachers import grids
from teachers.puzzles import puzzle_teacher
from teachers.server import Server

GRIDS = ("mini_sudoku", "rotate_matrix")
OF_LINES = (
    "arc_agi", "binary_matrix", "futoshiki", "kakurasu", "manipulate_matrix", "mini_sudoku", "modulo_grid", "n_queens",
    "pool_matrix", "rearc", "rotate_matrix", "sudoku", "survo", "tower_of_hanoi",
)  # fmt: skip
"""Tasks of reasoning-gym whose answers have several lines."""
NESTED = ("game_of_life", "group_anagrams")
"""Tasks whose answers begin with `[[`, as tags do."""


def question(task: str, index: int = 0) -> Question:
    (found,) = list(read_source(ReasoningGymSource(kind="reasoning-gym", task=task, size=index + 1)))[index:]
    assert isinstance(found, Question)
    return found


@pytest.mark.parametrize("task", [*OF_LINES, *NESTED])
def test_an_answer_is_right_as_it_is_and_as_a_thread_closes_with_it(task: str) -> None:
    forms = set()
    for index in range(3):
        given = question(task, index).model_dump()
        answer = given["answer"]
        forms |= {"\n" in answer, answer.startswith("[[")}
        closing = f"I compare.\nanswer: {spell_answer(tidy(answer))} [[best]]"
        closed = read_closing(closing)
        assert closed is not None
        assert "\n" not in closed
        for text in (answer, tidy(answer), closed, read_answer(closing, lines=True)):
            assert is_right("reasoning-gym", given, text), text
        scorer = reasoning_gym.create_dataset(task, seed=0, size=index + 1)
        assert scorer.score_answer(read_spelled(closed), scorer[index]) == 1.0
    assert True in forms


def test_lines_run_together_are_wrong_still() -> None:
    given = question("sudoku").model_dump()
    assert not is_right("reasoning-gym", given, " ".join(given["answer"].split()))
    rows = given["answer"].split("\n")
    swapped = "\n".join([rows[1], rows[0], *rows[2:]])
    assert not is_right("reasoning-gym", given, swapped)
    assert not is_right("reasoning-gym", given, spell_answer(swapped))


@pytest.mark.parametrize(
    "text", ["a", "1 2\n3 4", "  ^\nQ _\n\n  v  x", "\\begin{matrix} 1 \\\\\n2", "[[1], [2]]", "[[[1]]]"]
)
def test_what_is_spelled_in_one_line_reads_back(text: str) -> None:
    assert "\n" not in spell_answer(text)
    assert "[[" not in spell_answer(text)
    assert read_spelled(spell_answer(text)) == text


@pytest.mark.parametrize("text", [r"x \neq 2", r"\nu + 1", r"a \\n b", r"\nabla f"])
def test_latex_is_no_line_break(text: str) -> None:
    assert read_spelled(text) == text


def test_the_lines_of_a_question_stay_as_they_are_drawn() -> None:
    drawn = question("figlet_font")
    task = reasoning_gym.create_dataset("figlet_font", seed=0, size=1)
    lines = [line.rstrip() for line in task[0]["question"].split("\n")]
    assert drawn.text == "\n".join(lines).strip("\n")
    assert normalise("\n if x:\n\tif  y:\u00a0\n     z\n\n") == " if x:\n\tif  y:\n     z"
    assert normalise("  What  is\u00a0 it?\n") == "What is it?"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("So.\nanswer:\n1 2\n3 4", "1 2\n3 4"),
        ("answer: 9\nNo.\nAnswer: 1 2\n3 4 [[best]]\nBye", "1 2\n3 4"),
        ("answer:\n```text\n1 2\n3 4\n```\n", "1 2\n3 4"),
        (r"answer: 1 2 \n 3 4", r"1 2 \n 3 4"),
        ("所以 answer\uff1a1 2\n3 4", "1 2\n3 4"),
        ("\\boxed{1 2\n3 4}", "1 2\n3 4"),
        ("none", ""),
    ],
)
def test_the_base_model_may_answer_in_lines(reply: str, expected: str) -> None:
    assert read_answer(reply, lines=True) == expected


def test_an_answer_in_brackets_does_not_end_before_it_begins() -> None:
    assert read_answer("answer: [[1, 2], [3]] [[fail]]") == "[[1, 2], [3]]"


def test_a_last_step_states_a_grid_in_one_line() -> None:
    assert states(one_line("So it is\n1 2\n3 4"), "1 2\n3 4")
    assert not states(one_line("So it is\n1 2\n4 3"), "1 2\n3 4")


def test_grids_come_through_all_stages(make_config: Callable[..., DataConfig]) -> None:
    """And reasoning-gym's own scorer takes for right what the paths, and the closed threads, of right answers say."""
    sources = [
        {"kind": "reasoning-gym", "task": task, "size": 10, "config": config} for task, config in CONFIGS.items()
    ]
    with Server(puzzle_teacher()) as server:
        config = make_config(
            server.url,
            questions={"sources": sources, "near_duplicates": 0},
            run={"max_threads": 3},
            steps={"max_steps": 30},
        )
        run_pipeline(config)
    (outcomes,) = config.run.out.glob("stages/*-lattice-*/outcomes.jsonl")
    items = [item for _, item in read_items(outcomes)]
    for task in GRIDS:
        own = [item for item in items if item.question.data["task"] == task]
        assert len(own) >= 6
        assert {path.right for item in own for path in item.paths} == {True, False}
        for item in own:
            _as_the_scorer_says(item)
    lines = [line for part in ("train", "validation") for line in (config.run.out / part / "lattices.jsonl").open()]
    assert len(lines) == len(items)
    assert any("\n" in json.loads(json.loads(line)["origin"])["answer"] for line in lines)


CONFIGS: dict[str, dict[str, Any]] = {
    "mini_sudoku": {"min_empty": 4, "max_empty": 8},
    "rotate_matrix": {"min_n": 3, "max_n": 4},
}


def test_a_grid_is_shown_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    path = ThreadPath(text="I see.", answer="1 2\n3 4", summary="s", distance=1.0)
    print_item(
        Item(question=question("mini_sudoku"), labels=(3,), paths=(path,)), Console(width=80, force_terminal=False)
    )
    shown = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    start = shown.index("answer:")
    assert shown[start : start + 4] == ["answer:", "1 2", "3 4", "(not verified)"]


def _as_the_scorer_says(item: Item) -> None:
    data, tokenizer = item.question.data, byte_tokenizer()
    task = reasoning_gym.create_dataset(data["task"], seed=data["seed"], size=data["index"] + 1, **data["config"])
    entry = task[data["index"]]
    assert item.lattice is not None
    for path, thread in zip(item.paths, item.lattice.threads, strict=True):
        assert path.right == (task.score_answer(path.answer, entry) == 1.0)
        text = tokenizer.decode(tokenizer.convert_tokens_to_ids(thread.tokens))
        closing = text.split("\n")[-1]
        assert closing.startswith("answer: ")
        assert closing.endswith(f" [[{path.tag}]]<eos>")
        said = read_closing(text)
        assert said is not None
        assert read_spelled(said) == path.answer
        assert path.right == (task.score_answer(read_spelled(said), entry) == 1.0)
        assert path.right == grids.is_right(item.question.text, said)
        assert path.right == is_right("reasoning-gym", item.question.model_dump(), said)
