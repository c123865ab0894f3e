"""inspect-ai: with our engine in its process, and with its own OpenAI provider against a real server."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from lace.engine.engine import Engine
from lace.engine.parity import ROUNDING
from lace.engine.result import LatticeResult
from running_server import Running

pytest.importorskip("inspect_ai", reason="needs inspect-ai: pip install -e '.[inspect]', not in constraints.txt")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

pytestmark = pytest.mark.slow
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60, "seed": 1234}


def run(model: Model, questions: list[str], answers: list[str], folder: Path, **settings: Any) -> EvalLog:
    samples = [Sample(input=question, target=answer) for question, answer in zip(questions, answers, strict=True)]
    task = Task(dataset=samples, solver=generate(), scorer=exact())
    (log,) = eval(task, model=model, log_dir=str(folder), display="none", **{**GREEDY, **settings})
    return log


def texts(log: EvalLog) -> list[list[str]]:
    assert log.status == "success", log.error
    samples = sorted(log.samples, key=lambda sample: sample.id)
    return [[choice.message.text for choice in sample.output.choices] for sample in samples]


@pytest.fixture(scope="module")
def ours() -> Model:
    return get_model("lace/puzzles", threads=4)


@pytest.fixture
def theirs(server: Running) -> Model:
    return get_model("openai-api/lace/puzzles", base_url=f"{server.url}/v1", api_key="none")


def test_entry_point() -> None:
    points = importlib.metadata.entry_points(group="inspect_ai")
    assert "lace.eval.inspect_ai" in {point.value for point in points}


def test_in_process(
    ours: Model, questions: list[str], greedy: list[LatticeResult], answers: list[str], tmp_path: Path
) -> None:
    log = run(ours, questions, answers, tmp_path)
    assert texts(log) == [[answer] for answer in answers]
    assert log.results.scores[0].metrics["mean"].value == 1
    for sample, result in zip(sorted(log.samples, key=lambda sample: sample.id), greedy, strict=True):
        assert sample.output.usage.output_tokens == result.completion_tokens
        report = sample.output.metadata["lace"]
        assert [thread["text"] for thread in report["threads"]] == [thread.text for thread in result.threads]
        assert report["chosen"] == result.chosen


def test_all_threads_as_choices(
    ours: Model, puzzles: Engine, questions: list[str], greedy: list[LatticeResult], tmp_path: Path
) -> None:
    log = run(ours, questions, [""] * 4, tmp_path, num_choices=4, logprobs=True)
    assert texts(log) == [[thread.text for thread in result.threads] for result in greedy]
    choice, thread = log.samples[0].output.choices[0], greedy[0].threads[0]
    assert choice.stop_reason == {"eos": "stop", "lattice": "stop", "length": "max_tokens"}[thread.finish_reason]
    kept = [p for token, p in zip(thread.token_ids, thread.logprobs, strict=True) if token not in puzzles.end_ids]
    assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(kept, abs=ROUNDING)


def test_through_the_server(
    theirs: Model, questions: list[str], greedy: list[LatticeResult], answers: list[str], tmp_path: Path
) -> None:
    log = run(theirs, questions, answers, tmp_path)
    assert texts(log) == [[answer] for answer in answers]
    assert log.results.scores[0].metrics["mean"].value == 1
    assert [sample.output.usage.output_tokens for sample in sorted(log.samples, key=lambda sample: sample.id)] == [
        result.completion_tokens for result in greedy
    ]
    log = run(theirs, questions, [""] * 4, tmp_path, num_choices=2, extra_body={"lace": {"threads": 4}})
    assert texts(log) == [[thread.text for thread in result.threads[:2]] for result in greedy]


def test_what_is_refused(ours: Model, questions: list[str], tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"frequency_penalty": 0.5}, "the provider lace does not support frequency_penalty"),
        ({"num_choices": 5}, "num_choices is 5, but threads only 4"),
        ({"max_tokens": 5000}, "is too long"),
    ]
    for settings, message in wrong:
        log = run(ours, questions[:1], [""], tmp_path, **settings)
        assert log.status == "error"
        assert message in log.error.message
    with pytest.raises(ValueError, match="strategy must be lace or independent"):
        get_model("lace/puzzles", strategy="swapped")
