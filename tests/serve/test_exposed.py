"""What `lace.expose` tells besides the answer: exchanges, verdicts, recordings; and the puzzles to ask."""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from lace.engine.engine import Engine
from lace.engine.exchanges import FAINT, MOST_READINGS
from lace.tasks.task import TASKS, find_task
from lace.viz import trace as recording
from lace.viz.trace import Trace
from running_server import Running, serve
from tiny_engine import PROMPTS

ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": PROMPTS[0]}],
    "max_tokens": 12,
    "seed": 3,
}


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Running]:
    with serve(lambda: tiny) as running:
        yield running


def told(response: httpx2.Response) -> list[dict[str, Any]]:
    """What stands under `lace` in the chunks of a stream."""
    assert response.text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    return [chunk["lace"] for chunk in chunks if "lace" in chunk]


def load(packed: str, folder: Path) -> Trace:
    path = folder / "from-server.trace"
    path.write_bytes(gzip.decompress(base64.b64decode(packed)))
    return Trace.load(path)


def strengths(trace: Trace, n: int, step: int) -> torch.Tensor:
    """By entry: the largest over layers of the mean over heads of gate times attention."""
    place = sum(len(thread.texts) for thread in trace.threads[:n]) + step
    entries, weights = trace.entries_YVGK[:, 1:, place].long(), trace.weights_YVGK[:, 1:, place].float()
    through = weights * trace.gates_YGH[:, place, :, None].float()
    most = len(trace.threads) * max(len(thread.texts) for thread in trace.threads)
    return torch.zeros(*through.shape[:2], most).scatter_add_(2, entries, through).mean(dim=1).amax(dim=0)


def test_exchanges_are_what_the_recording_finds(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside another lattice, which began earlier and is as wide as this one is not."""
    monkeypatch.setattr(recording, "MOST_ENTRIES", 10_000)  # all of them
    monkeypatch.setattr(recording, "BYTES_PER_TOKEN", 10**7)
    alone = server.post({**ASK, "lace": {"threads": 3, "expose": "threads"}}).json()["lace"]["threads"]
    with server.client().chat.completions.create(**{**ASK, "max_tokens": 200}, n=5, stream=True) as other:
        for _ in range(40):
            next(other)
        options = {"threads": 3, "expose": ["exchanges", "trace"]}
        rows = told(server.post({**ASK, "stream": True, "lace": options}))
    *tokens, report, last = rows
    trace = load(last["trace"], tmp_path)
    written: dict[int, list[str]] = defaultdict(list)
    compared = 0
    for row in tokens:
        n, step = row["thread"], row["step"]
        assert step == len(written[n])
        written[n].append(row["delta"])
        assert row["label"] == trace.threads[n].label
        assert row["given"] == (step < trace.threads[n].given)
        found = {(r["thread"], r["step"]): r["weight"] for r in row["exchanges"]}
        if row["given"]:
            assert found == {}
            continue
        best = strengths(trace, n, step).topk(MOST_READINGS)
        expected = {(e % 3, e // 3): w for w, e in zip(best.values.tolist(), best.indices.tolist(), strict=True)}
        assert found == pytest.approx({at: w for at, w in expected.items() if w >= FAINT}, abs=2e-3)
        compared += len(found)
    assert compared > 30
    assert list(written.values()) == [thread.texts for thread in trace.threads]
    texts = ["".join(pieces[t.given :]).strip() for pieces, t in zip(written.values(), trace.threads, strict=True)]
    assert texts == [thread["text"] for thread in alone]  # nothing is changed by being looked at
    assert report["seconds"] > 0
    server.wait_until_idle()


def test_independent_threads_exchange_nothing(server: Running) -> None:
    options = {"threads": 3, "strategy": "independent", "expose": "exchanges"}
    rows = told(server.post({**ASK, "stream": True, "lace": options}))
    assert len(rows) > 30
    assert not any(row["exchanges"] for row in rows[:-1])


@pytest.mark.parametrize("body", [{}, {"stream": True, "n": 2}])
def test_exchanges_need_a_stream_of_one_choice(server: Running, body: dict[str, Any]) -> None:
    response = server.post({**ASK, **body, "lace": {"threads": 3, "expose": ["exchanges"]}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "lace.expose"


@pytest.mark.parametrize("wrong", ["text", ["threads", "text"], 5, ["threads"] * 9])
def test_what_cannot_be_exposed(server: Running, wrong: object) -> None:
    response = server.post({**ASK, "lace": {"expose": wrong}})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("lace.expose")


def test_verdict_and_recording_of_a_whole_answer(shipped_server: Running, tmp_path: Path) -> None:
    body = {**ASK, "model": "puzzles", "max_tokens": 110, "lace": {"threads": 2, "expose": ["verdict", "trace"]}}
    report = shipped_server.post(body).json()["lace"]
    trace = load(report["trace"], tmp_path)
    puzzle = find_task(PROMPTS[0])[1]
    verdicts = [puzzle.check(thread["answer"]) for thread in report["threads"]]
    assert [thread["correct"] for thread in report["threads"]] == verdicts == [t.correct for t in trace.threads]
    assert report["correct"] == verdicts[report["chosen"]]
    assert (trace.chosen, trace.chosen_by, trace.model) == (report["chosen"], report["chosen_by"], "puzzles")


def test_other_questions_have_no_verifier(server: Running) -> None:
    body = {"model": "tiny", "prompt": ["Good morning", PROMPTS[0]], "max_tokens": 3, "lace": {"expose": "verdict"}}
    reports = server.post(body, "/v1/completions").json()["lace"]["prompts"]
    assert reports[0]["correct"] is None
    assert reports[1]["correct"] is False


def test_a_recording_that_fails_fails_alone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PASS_SIZE", "much")
    response = server.post({**ASK, "lace": {"threads": 2, "expose": "trace"}})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the run could not be recorded"
    assert server.post({**ASK, "lace": {"threads": 2}}).status_code == 200
    server.wait_until_idle()


def test_puzzles_to_ask(server: Running) -> None:
    drawn = httpx2.get(f"{server.url}/v1/lace/puzzles", params={"n": 2, "seed": 1}).json()["data"]
    assert [puzzle["task"] for puzzle in drawn] == [task for task in TASKS for _ in range(2)]
    for puzzle in drawn:
        assert find_task(puzzle["prompt"])[0] == puzzle["task"]
    assert httpx2.get(f"{server.url}/v1/lace/puzzles", params={"n": 21}).status_code == 400


def test_pages_need_no_key_and_what_they_ask_does(tiny: Engine) -> None:
    with serve(lambda: tiny, api_keys=frozenset({"secret"})) as server:
        for path in ("/", "/viewer.html"):
            page = httpx2.get(server.url + path)
            assert page.status_code == 200
            assert page.text.startswith("<!doctype html>")
            assert page.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert httpx2.get(f"{server.url}/v1/lace/puzzles").status_code == 401
