"""The official openai package of npm against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lace.engine.result import LatticeResult
from running_server import Running

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (HERE / "node_modules" / "openai").exists(),
    reason="needs node and the package: npm install --prefix tests/clients",
)


def test_everything_a_user_does(server: Running, questions: list[str], sampled: LatticeResult) -> None:
    script = ["node", str(HERE / "openai_client.mjs"), server.url, questions[0]]
    run = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    texts = [thread.text for thread in sampled.threads]
    assert got["models"] == ["puzzles"]
    assert got["one"] == got["helper"] == texts[sampled.chosen]
    assert [thread["text"] for thread in got["lace"]["threads"]] == texts
    assert got["four"] == got["completions"] == texts
    assert got["streamed"] == {str(n): text for n, text in enumerate(texts)}
    assert got["usage"]["completion_tokens"] == sampled.completion_tokens
    assert got["refused"] == {"status": 404, "code": "model_not_found", "type": "NotFoundError"}
    server.wait_until_idle()  # the client that left in the middle has freed its lattice
