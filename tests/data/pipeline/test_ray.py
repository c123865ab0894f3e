"""The same stages through Ray Data, on a Ray of this machine with two workers."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from byte_tokenizer import byte_tokenizer
from data.pipeline.test_pipeline_run import lattices, without_times, write_questions
from lace.cli.base_sampler import EngineSampler
from lace.data.pipeline.config import DataConfig, Engine
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.resources import Helpers
from lace.data.pipeline.run import run_pipeline
from lace.data.pipeline.stats import run_stats
from lace.tasks import chain_sum, countdown
from lace.train.embedding_diversity import EmbeddingDiversity
from teachers.puzzles import puzzle_teacher
from teachers.server import Answer, Server
from tiny import SHAPE

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error:.*will be removed in Ray")]
VERIFIER = """
from lace.tasks.task import find_task


def solves(question, answer):
    return find_task(question["text"])[1].check(answer)
"""


@pytest.fixture
def two_workers() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_workers")
def test_ray_makes_what_the_local_executor_makes(tmp_path: Path, make_config: Callable[..., DataConfig]) -> None:
    write_questions(tmp_path / "q.jsonl", 20)
    questions = {"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}]}
    with Server(puzzle_teacher()) as server:
        config = make_config(server.url, questions=questions, run={"out": str(tmp_path / "ray")})
        run_pipeline(config, executor="ray")
        asked = dict(server.requests)
        run_pipeline(config, executor="ray")
        assert server.requests == asked, "a finished run makes no call"
        here = make_config(server.url, questions=questions, run={"out": str(tmp_path / "local")})
        run_pipeline(here)
    assert set(asked.values()) == {1}
    assert sum(stage.calls for stage in run_stats(config.run.out).stages) == len(asked)
    assert without_times(lattices(config.run.out)) == without_times(lattices(here.run.out))
    for log in (config.run.out / "calls").glob("*.jsonl"):
        counts = Counter(line["key"] for line in read_lines(log))
        assert set(counts) <= set(asked)
        assert max(counts.values(), default=1) == 1


@pytest.mark.usefixtures("two_workers")
def test_a_server_that_refuses_all_calls_is_told_in_one_line(
    tmp_path: Path, make_config: Callable[..., DataConfig]
) -> None:
    write_questions(tmp_path / "q.jsonl", 4)
    questions = {"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}]}
    with Server(lambda request: Answer("no such key", status=401)) as server:
        config = make_config(server.url, questions=questions)
        with pytest.raises(ValueError, match=r"^http://\S+ refuses all calls: status 401: no such key"):
            run_pipeline(config, executor="ray")


def outcomes(out: Path, stage: str) -> list[Any]:
    """Of a stage, without keys and times."""
    (path,) = out.glob(f"stages/*-{stage}-*/outcomes.jsonl")
    kept = ("kept", "id", "reason", "detail")
    found = [[line.get(name) for name in kept] + [{**line.get("item", {}), "history": ()}] for line in read_lines(path)]
    return sorted(found, key=lambda line: str(line[1]))


@pytest.mark.usefixtures("two_workers")
def test_an_engine_runs_in_an_actor_which_loads_it_once(
    tmp_path: Path, make_config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same pass rates as here, by a verifier of the user that stands beside the config."""
    rng, loads = Random(0), tmp_path / "loads"
    (tmp_path / "beside_the_config.py").write_text(VERIFIER)
    monkeypatch.syspath_prepend(tmp_path)
    prompts = [task.generate(rng, "test").prompt for task in (countdown, chain_sum) for _ in range(5)]
    rows = [{"id": f"q{n}", "question": prompt, "answer": ""} for n, prompt in enumerate(prompts)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "questions": {
            "sources": [
                {
                    "kind": "file",
                    "path": str(tmp_path / "q.jsonl"),
                    "id": "id",
                    "verifier": "beside_the_config:solves",
                }
            ],
            "near_duplicates": 0,
        },
        "base": {"engine": "puzzles", "temperature": 1.0, "max_tokens": 165},
        "pass_rate": {"samples": 8},
    }
    loads.mkdir()

    def load(config: Engine) -> EngineSampler:
        with (loads / str(os.getpid())).open("a") as file:
            file.write("x")
        return EngineSampler(config)

    with Server(puzzle_teacher()) as server:
        for executor in ("ray", "local"):
            config = make_config(server.url, run={"out": str(tmp_path / executor)}, **sections)
            assert isinstance(config.base, Engine)
            run_pipeline(config, executor=executor, helpers=Helpers(partial(load, config.base)))  # type: ignore[arg-type]
    assert [path.read_text() for path in loads.iterdir()] == ["x", "x"], "one actor, and this process"
    assert str(os.getpid()) in {path.name for path in loads.iterdir()}
    there, here = (outcomes(tmp_path / executor, "pass-rate") for executor in ("ray", "local"))
    assert there == here
    assert len(there) == 10
    assert len({line[0] for line in there}) == 2, "some of each, so that both ways were taken"


@pytest.mark.usefixtures("two_workers")
def test_actors_measure_distance_in_meaning(tmp_path: Path, make_config: Callable[..., DataConfig]) -> None:
    encoder, tokenizer = tmp_path / "encoder", byte_tokenizer()
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "max_position_embeddings": 2048}
    Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8)).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    write_questions(tmp_path / "q.jsonl", 6)

    def load() -> Any:
        loaded = EmbeddingDiversity(encoder)
        return lambda texts: loaded.embed(texts).tolist()

    with Server(puzzle_teacher()) as server:
        for executor in ("ray", "local"):
            config = make_config(
                server.url,
                run={"out": str(tmp_path / executor)},
                questions={"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}]},
                solutions={"encoder": str(encoder), "min_dissimilarity": 0},
            )
            run_pipeline(config, executor=executor, helpers=Helpers(load_embed=load))  # type: ignore[arg-type]
    there, here = (outcomes(tmp_path / executor, "solutions") for executor in ("ray", "local"))
    assert len(there) == 6
    for one, other in zip(there, here, strict=True):
        measured, expected = ([path.pop("dissimilarity") for path in line[4]["paths"]] for line in (one, other))
        assert measured == pytest.approx(expected, abs=1e-5)
        assert 0 < min(measured) < 1
        assert one == other


@pytest.mark.usefixtures("two_workers")
def test_an_engine_that_an_actor_cannot_load_is_told_in_one_line(
    tmp_path: Path, make_config: Callable[..., DataConfig]
) -> None:
    write_questions(tmp_path / "q.jsonl", 4)
    questions = {"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}]}
    config = make_config("http://127.0.0.1:1/v1", questions=questions, base={"engine": str(tmp_path / "nothing")})
    assert isinstance(config.base, Engine)
    with pytest.raises(ValueError, match=r"^.*nothing.*$"):
        run_pipeline(config, executor="ray", helpers=Helpers(partial(EngineSampler, config.base)))
