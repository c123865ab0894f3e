"""What the tests of other people's clients share: a server of the embedded model, and what it shall answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams
from lace.tasks.task import get_task
from running_server import Running, serve


@pytest.fixture(scope="session")
def puzzles() -> Engine:
    return load_engine("puzzles")


@pytest.fixture(scope="session")
def server(puzzles: Engine) -> Iterator[Running]:
    with serve(lambda: puzzles, model="puzzles", shipped=True, threads=4) as running:
        yield running


@pytest.fixture(scope="session")
def questions() -> list[str]:
    return [puzzle.prompt for puzzle in get_task("countdown").puzzles(4, 0, "validation")]


@pytest.fixture(scope="session")
def greedy(puzzles: Engine, questions: list[str]) -> list[LatticeResult]:
    """The engine's own answers: 60 tokens, temperature 0, and the seed that lm-eval sends."""
    return puzzles.generate(questions, SamplingParams(threads=4, max_tokens=60, temperature=0, seed=1234))


@pytest.fixture(scope="session")
def answers(greedy: list[LatticeResult]) -> list[str]:
    """What the chosen threads wrote."""
    return [result.threads[result.chosen].text for result in greedy]


@pytest.fixture(scope="session")
def sampled(puzzles: Engine, questions: list[str]) -> LatticeResult:
    """The engine's own answer to the first question: 40 tokens, seed 5."""
    return puzzles.generate(questions[0], SamplingParams(threads=4, max_tokens=40, top_p=0.9, seed=5))[0]
