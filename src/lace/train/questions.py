"""What Lattice GRPO asks: an endless stream of puzzles of the tasks, or of questions with answers from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from lace.data.rounds import Rounds
from lace.tasks.task import TASKS, get_task
from lace.train.grpo import Question


class TaskQuestions:
    """Puzzles of the training part, of several tasks in turns; question n depends on the seed and n alone."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self.tasks, self.seed = [get_task(name) for name in names], seed

    def __getitem__(self, index: int, /) -> Question:
        puzzle = self.tasks[index % len(self.tasks)].generate(Random(f"{self.seed}/question/{index}"), "train")
        return Question(puzzle.prompt, puzzle.check)


class FileQuestions:
    """Lines of `{"prompt": "...", "answer": "..."}`, shuffled anew for each round; an answer is right if it is the same
    text but for white space around it.

    Raises:
        ValueError: one line with file and line, for what is no such object, or for an empty file.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path, seed: int) -> None:
        self.pairs: list[tuple[str, str]] = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
            right = isinstance(values, dict) and values.keys() == {"prompt", "answer"}
            if not right or not all(isinstance(text, str) and text.strip() for text in values.values()):
                raise ValueError(f"{path}, line {number}: an object of two texts, prompt and answer, is needed")
            self.pairs.append((values["prompt"], values["answer"].strip()))
        if not self.pairs:
            raise ValueError(f"{path} holds no questions")
        self.order = Rounds(len(self.pairs), seed)

    def __getitem__(self, index: int, /) -> Question:
        prompt, answer = self.pairs[self.order[index]]
        return Question(prompt, _same_as(answer))


def _same_as(expected: str) -> Callable[[str | None], bool]:
    return lambda answer: answer is not None and answer.strip() == expected


def questions_from(source: str, seed: int) -> TaskQuestions | FileQuestions:
    """Of tasks by their names, separated by commas, or of a file.

    Raises:
        ValueError: one line, for a name that is neither, or a malformed file.
    """
    names = [name.strip() for name in source.split(",")]
    if all(name in TASKS for name in names):
        return TaskQuestions(names, seed)
    if not Path(source).is_file():
        raise ValueError(f"no questions at {source!r}: neither a file nor a task ({', '.join(TASKS)})")
    return FileQuestions(source, seed)
