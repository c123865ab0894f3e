"""Whole runs: what they write, how they go on after a kill, and where they stop by themselves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from byte_tokenizer import CONFIG as STUDENT
from byte_tokenizer import byte_tokenizer
from lace.data.assemble import assemble
from lace.data.jsonl import find_files, read_records
from lace.data.pipeline.config import DataConfig, read_config
from lace.data.pipeline.export import export
from lace.data.pipeline.find import find_item
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.run import Stopped, run_pipeline
from lace.data.pipeline.stats import run_stats
from teachers.faults import spoil, with_faults
from teachers.puzzles import puzzle_teacher
from teachers.server import Answer, Request, Server


def write_questions(path: Path, count: int) -> None:
    rng = Random(0)
    with path.open("w") as file:
        for n in range(count):
            numbers = [rng.randint(10, 99) for _ in range(4)]
            row = {
                "id": f"q{n}",
                "question": f"Calculate {' + '.join(map(str, numbers))}.",
                "answer": str(sum(numbers)),
            }
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    write_questions(tmp_path / "q.jsonl", 12)
    return {"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}]}


def lattices(out: Path) -> list[str]:
    return [line for part in ("train", "validation") for line in (out / part / "lattices.jsonl").open()]


def without_times(lines: list[str]) -> list[Any]:
    """Records with all that does not depend on when they were made."""
    found = []
    for line in lines:
        record = json.loads(line)
        origin = json.loads(record.pop("origin"))
        for mark in origin["history"]:
            del mark["made"]
        found.append((origin["id"], json.dumps(record), json.dumps(origin)))
    return sorted(found)


def test_a_run_ends_in_records_that_training_reads(make_config: Callable[..., DataConfig], sources: Any) -> None:
    with Server(puzzle_teacher()) as server:
        config = make_config(server.url, questions=sources)
        written = run_pipeline(config, "lace data run x.toml")
        asked = sum(server.requests.values())
        assert set(server.requests.values()) == {1}
        again = run_pipeline(config)
        assert sum(server.requests.values()) == asked, "a finished run makes no call"
    out = config.run.out
    assert again == written
    assert written["train"] > 0
    assert written["validation"] > 0
    tokenizer = byte_tokenizer()
    for part in ("train", "validation"):
        (file,) = find_files(out / part)
        for record in read_records(file):
            assemble(record, tokenizer)
            text = ["".join(thread.tokens) for thread in record.threads]
            assert sum("[[best]]" in each for each in text) == 1
            origin = json.loads(record.origin)
            assert origin["id"].startswith("q")
            assert [mark["stage"] for mark in origin["history"]] == [
                "questions", "solutions", "verify", "steps", "notes", "lattice",
            ]  # fmt: skip
            for before, mark in zip(origin["history"], origin["history"][1:], strict=False):
                assert mark["parent"] == before["key"]
            solved = origin["history"][1]
            assert (solved["models"], solved["prompts"][0][:8], bool(solved["seeds"])) == (
                ["scripted"],
                "solve 2 ",
                True,
            )
    about = json.loads((out / "run.json").read_text())
    assert about["command"] == ""
    assert about["config"]["teacher"]["model"] == "scripted"


def test_seeds_decide_everything(make_config: Callable[..., DataConfig], sources: Any, tmp_path: Path) -> None:
    found = []
    with Server(puzzle_teacher()) as server:
        for out, seed in (("a", 0), ("b", 0), ("c", 1)):
            config = make_config(server.url, questions=sources, run={"out": str(tmp_path / out), "seed": seed})
            run_pipeline(config)
            found.append(without_times(lattices(config.run.out)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_another_setting_of_a_late_stage_pays_for_that_stage_alone(
    make_config: Callable[..., DataConfig], sources: Any
) -> None:
    prompts: Counter[str] = Counter()

    def script(request: Request) -> Answer:
        prompts[request.prompt[:9]] += 1
        return teacher(request)

    teacher = puzzle_teacher()
    with Server(script) as server:
        run_pipeline(make_config(server.url, questions=sources))
        before = dict(prompts)
        run_pipeline(make_config(server.url, questions=sources, notes={"max_notes": 3}))
        assert prompts["You let p"] == 2 * before["You let p"]
        assert all(prompts[name] == before[name] for name in ("You write", "You edit "))
        run_pipeline(make_config(server.url, questions=sources, steps={"max_steps": 20}))
    assert prompts["You write"] == before["You write"]
    assert prompts["You edit "] == 2 * before["You edit "]
    assert prompts["You let p"] == 2 * before["You let p"], "the same steps came out, so that these calls are known"


def test_the_key_is_written_nowhere(
    make_config: Callable[..., DataConfig], sources: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with Server(puzzle_teacher()) as server:
        config = make_config(server.url, questions=sources)
        run_pipeline(config)
    for path in config.run.out.rglob("*"):
        assert not path.is_file() or b"sk-very-secret" not in path.read_bytes()


def test_calls_with_other_fields_are_other_calls(make_config: Callable[..., DataConfig], sources: Any) -> None:
    """And the log tells which."""
    with Server(puzzle_teacher()) as server:
        for teacher in ({}, {"extra": {"top_k": 3}, "omit": ["seed"]}, {"extra": {"top_k": 4}, "omit": ["seed"]}):
            config = make_config(server.url, questions=sources, teacher=teacher)
            run_pipeline(config)
        assert set(server.requests.values()) == {1}
    lines = list(read_lines(config.run.out / "calls" / "solutions.jsonl"))
    assert lines[0]["sampling"].keys() == {"temperature", "top_p", "max_tokens", "seed"}
    assert lines[-1]["sampling"] == {"temperature": 0.8, "top_p": 1.0, "max_tokens": 4096, "top_k": 4}
    assert len(list((config.run.out / "stages").glob("2-solutions-*"))) == 3


def test_a_budget_stops_a_run_which_then_goes_on(make_config: Callable[..., DataConfig], sources: Any) -> None:
    prices = {"price_prompt": 1000.0, "price_completion": 1000.0}
    with Server(puzzle_teacher()) as server:
        for budget, told in (({"tokens": 3000}, "budget.tokens = 3000"), ({"money": 5.0}, "budget.money = 5")):
            with pytest.raises(Stopped, match=told):
                run_pipeline(make_config(server.url, questions=sources, budget=budget, teacher=prices))
        config = make_config(server.url, questions=sources, teacher=prices)
        run_pipeline(config)
        assert set(server.requests.values()) == {1}
    stats = run_stats(config.run.out)
    tokens = sum(stage.prompt_tokens + stage.completion_tokens for stage in stats.stages)
    assert sum(stage.cost for stage in stats.stages) == pytest.approx(tokens / 1000)


def test_calls_that_a_killed_cluster_has_left_count_for_the_budget(
    make_config: Callable[..., DataConfig], sources: Any
) -> None:
    with Server(puzzle_teacher()) as server:
        config = make_config(server.url, questions=sources)
        run_pipeline(config)
        calls, asked = config.run.out / "calls" / "solutions.jsonl", sum(server.requests.values())
        calls.rename(calls.with_name("solutions.worker-1.part"))
        with pytest.raises(Stopped, match=r"budget.tokens = 3000 is spent"):
            run_pipeline(make_config(server.url, questions=sources, budget={"tokens": 3000}, run={"seed": 1}))
        run_pipeline(config)
        assert sum(server.requests.values()) == asked, "and none is made again"


def test_minutes_end_a_run_that_waits_and_says_so(
    make_config: Callable[..., DataConfig], sources: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with Server(lambda request: spoil("429", Answer(), retry_after=3600)) as server:
        config = make_config(server.url, questions=sources, budget={"minutes": 0.03})
        with pytest.raises(Stopped, match=r"budget.minutes = 0.03 is spent"):
            run_pipeline(config)
    assert re.search(r"^solutions  0/12  the server asks to wait 0:0?9:5\d$", capfd.readouterr().err, re.MULTILINE)


def test_minutes_end_a_stage_that_makes_no_calls(make_config: Callable[..., DataConfig], sources: Any) -> None:
    with Server(puzzle_teacher()) as server:
        run_pipeline(make_config(server.url, questions=sources))
        again = {"verify": {"processes": 1, "seconds": 61.0}}
        with pytest.raises(Stopped, match=r"budget.minutes = 1e-06 is spent"):
            run_pipeline(make_config(server.url, questions=sources, budget={"minutes": 0.000001}, **again))
        config = make_config(server.url, questions=sources, **again)
        run_pipeline(config)
        assert set(server.requests.values()) == {1}
    first, _, verified, *_ = run_stats(config.run.out).stages
    assert first.kept == 12
    assert verified.kept > 0


def test_a_card_tells_of_the_lattices_that_are_there(
    make_config: Callable[..., DataConfig], sources: Any, tmp_path: Path
) -> None:
    """And not of a later run with another config, which has come to no lattices yet."""
    with Server(puzzle_teacher()) as server:
        config = make_config(server.url, questions=sources)
        written = run_pipeline(config)
        stopped = make_config(server.url, questions=sources, run={"seed": 5, "max_threads": 3}, budget={"tokens": 1})
        with pytest.raises(Stopped):
            run_pipeline(stopped)
    export(config.run.out, tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    count = sum(run_stats(config.run.out).parts.values())
    assert "with 2 to 4 threads" in " ".join(card.split())
    assert f"| lattices | {count} |" in card
    assert f"| of them in these files | train {written['train']}, validation {written['validation']} |" in card
    (config.run.out / "lattices.json").unlink()  # as a kill leaves it while the files are written anew
    with pytest.raises(ValueError, match="has no lattices yet"):
        export(config.run.out, tmp_path / "other")


def test_a_question_that_stands_twice_is_found_as_what_became_of_it(
    make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    row = json.dumps({"id": "q", "question": "Calculate 17 + 25 + 31.", "answer": "73"}) + "\n"
    (tmp_path / "q.jsonl").write_text(row * 2)
    source = {"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}
    with Server(puzzle_teacher(errors=0.0)) as server:
        config = make_config(server.url, questions={"sources": [source]})
        run_pipeline(config)
    item, rejected = find_item(config.run.out, "q")
    assert item is not None
    assert item.lattice is not None
    assert rejected is None
    assert run_stats(config.run.out).stages[0].rejected == {"exact duplicate": 1}


def test_what_fails_at_every_try_is_left_for_another_run(make_config: Callable[..., DataConfig], sources: Any) -> None:
    teacher, broken = puzzle_teacher(), [True]

    def script(request: Request) -> Answer:
        first = re.search(r"Calculate (\d+)", request.text)
        bad = broken[0] and first is not None and int(first[1]) % 3 == 0
        return spoil("500", teacher(request)) if bad else teacher(request)

    with Server(script) as server:
        config = make_config(server.url, questions=sources, teacher={"tries": 2})
        with pytest.raises(Stopped, match=r"\d+ items are left, since calls failed \(.*500"):
            run_pipeline(config)
        some = {identity for identity, _, _ in without_times(lattices(config.run.out))}
        broken[0] = False
        run_pipeline(config)
    every = {identity for identity, _, _ in without_times(lattices(config.run.out))}
    assert some < every


def test_faults_cost_time_and_nothing_else(make_config: Callable[..., DataConfig], sources: Any) -> None:
    with Server(with_faults(puzzle_teacher(), 0.3, hang=30.0, retry_after=0.01)) as server:
        config = make_config(server.url, questions=sources, teacher={"timeout_seconds": 2.0})
        run_pipeline(config)
    stats = run_stats(config.run.out)
    for before, stage in zip(stats.stages, stats.stages[1:], strict=False):
        assert stage.kept + sum(stage.rejected.values()) == before.kept
    assert stats.quality.causal == stats.quality.references > 0


def test_half_a_character_in_a_reply_ends_no_run(make_config: Callable[..., DataConfig], sources: Any) -> None:
    """A teacher's JSON can spell one half of a surrogate pair, which neither a key nor a file can hold."""
    teacher = puzzle_teacher()

    def script(request: Request) -> Answer:
        answer = teacher(request)
        reply = json.loads(answer.text or "")
        if "summary" in reply:
            reply["summary"] += " \ud83d"
            reply["solution"] += " \ud83d"
        return Answer(json.dumps(reply))

    with Server(script) as server:
        config = make_config(server.url, questions=sources)
        written = run_pipeline(config)
    assert written["train"] > 0
    paths = [line["item"]["paths"] for line in read_lines(next(config.run.out.glob("stages/2-*/outcomes.jsonl")))]
    assert all(path["summary"].endswith(" ?") for each in paths for path in each)


# --- interruption ----------------------------------------------------------------------------------------------------

PROGRAM = "from lace.cli.main import main; import sys; sys.argv = ['lace', 'data', 'run', '{config}']; main()"


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(config=config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def toml_config(path: Path, url: str, questions: Path, student: Path) -> DataConfig:
    path.write_text(f"""
[run]
out = "{path.parent / "out"}"
concurrency = 4
[teacher]
base_url = "{url}"
model = "scripted"
retry_seconds = 0.01
[[questions.sources]]
kind = "file"
path = "{questions}"
id = "id"
{STUDENT.format(student=student)}
[verify]
processes = 1
""")
    return read_config(path)


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_doubled_or_called_twice(tmp_path: Path, student: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 12)
    finished: set[str] = set()
    repeated: list[str] = []

    def script(request: Request) -> Answer:
        if request.key in finished:
            repeated.append(request.key)
        return teacher(request)

    teacher = puzzle_teacher(latency=0.05)
    with Server(script) as server:
        config = toml_config(tmp_path / "c.toml", server.url, tmp_path / "q.jsonl", student)
        for kills in range(4):
            run = start(tmp_path / "c.toml")
            before = sum(server.requests.values())
            while run.poll() is None and sum(server.requests.values()) < before + 15:
                time.sleep(0.02)
            os.kill(run.pid, signal.SIGKILL)
            run.communicate()
            logs = sorted((config.run.out / "calls").glob("*.jsonl"))
            finished |= {line["key"] for log in logs for line in read_lines(log)}
            if logs and kills == 1:  # as if the kill had torn a line
                with logs[-1].open("ab") as file:
                    file.write(b'{"key": "0123')
        run_pipeline(config)
        assert finished
        assert repeated == []
    for log in (config.run.out / "calls").glob("*.jsonl"):
        assert max(Counter(line["key"] for line in read_lines(log)).values(), default=1) == 1
    stats = run_stats(config.run.out)
    for before_stage, stage in zip(stats.stages, stats.stages[1:], strict=False):
        assert stage.kept + sum(stage.rejected.values()) == before_stage.kept
    unbroken = toml_config(tmp_path / "unbroken.toml", "http://127.0.0.1:1", tmp_path / "q.jsonl", student)
    with Server(puzzle_teacher()) as server:
        endpoint = unbroken.teacher.model_copy(update={"base_url": server.url})
        run_config = unbroken.run.model_copy(update={"out": tmp_path / "unbroken"})
        run_pipeline(unbroken.model_copy(update={"teacher": endpoint, "run": run_config}))
    assert without_times(lattices(config.run.out)) == without_times(lattices(tmp_path / "unbroken"))


def test_control_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path, student: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 12)
    with Server(puzzle_teacher(latency=0.3)) as server:
        config = toml_config(tmp_path / "c.toml", server.url, tmp_path / "q.jsonl", student)
        run = start(tmp_path / "c.toml")
        while len(server.requests) < 9:
            time.sleep(0.02)
        # Nobody else may work in the folder meanwhile.
        with pytest.raises(ValueError, match="another run is at work in"):
            run_pipeline(config)
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert run.returncode == 130, told
    assert "keeps all finished calls, go on with: lace data run" in told.splitlines()[-1]
    assert len(list(read_lines(config.run.out / "calls" / "solutions.jsonl"))) > 0


def test_a_folder_of_something_else_is_refused(make_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="exists, but holds no run"):
        run_pipeline(make_config("http://127.0.0.1:1"))


def test_no_question_left_is_told(make_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "", "answer": "1"}\n')
    config = make_config(
        "http://127.0.0.1:1", questions={"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl")}]}
    )
    with pytest.raises(ValueError, match=r"no question is left; .* says why"):
        run_pipeline(config)
