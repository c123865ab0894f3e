"""curl against a real server, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from typing import Any

import pytest

from lace.engine.result import LatticeResult
from running_server import Running

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl(*arguments: str) -> str:
    run = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def ask(server: Running, path: str, **body: object) -> str:
    settings = {"model": "puzzles", "seed": 5, "temperature": 1.0, "top_p": 0.9, "max_tokens": 40, **body}
    header = "Content-Type: application/json"
    return curl("-N", f"{server.url}/v1/{path}", "-H", header, "-d", json.dumps(settings))


def test_models_and_health(server: Running) -> None:
    assert json.loads(curl(f"{server.url}/v1/models"))["data"][0]["id"] == "puzzles"
    assert json.loads(curl(f"{server.url}/health")) == {"status": "ready"}


def test_one_choice(server: Running, questions: list[str], sampled: LatticeResult) -> None:
    answer = json.loads(ask(server, "chat/completions", messages=[{"role": "user", "content": questions[0]}]))
    assert answer["choices"][0]["message"]["content"] == sampled.threads[sampled.chosen].text
    assert answer["usage"]["completion_tokens"] == sampled.completion_tokens
    answer = json.loads(ask(server, "completions", prompt=questions[0], n=4))
    assert [choice["text"] for choice in answer["choices"]] == [thread.text for thread in sampled.threads]


def test_stream(server: Running, questions: list[str], sampled: LatticeResult) -> None:
    """Server-sent events as they go over the wire."""
    messages = [{"role": "user", "content": questions[0]}]
    events = ask(server, "chat/completions", messages=messages, n=4, stream=True).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    texts: dict[int, str] = defaultdict(str)
    for event in events[:-2]:
        chunk: dict[str, Any] = json.loads(event.removeprefix("data: "))
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {thread.index: thread.text for thread in sampled.threads}


def test_refusal(server: Running) -> None:
    written = curl("-w", "\n%{http_code}", f"{server.url}/v1/chat/completions", "-d", "{")
    body, status = written.rsplit("\n", 1)
    assert status == "400"
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
