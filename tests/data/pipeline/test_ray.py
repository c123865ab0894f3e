"""The same stages through Ray Data, on a Ray of this machine with two workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.pipeline.test_pipeline_run import lattices, without_times, write_questions
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.run import run_pipeline
from lace.data.pipeline.stats import run_stats
from teachers.puzzles import puzzle_teacher
from teachers.server import Answer, Server

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


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
