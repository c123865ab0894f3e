"""What `lace data run` finds, or misses, before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from byte_tokenizer import CONFIG as STUDENT
from byte_tokenizer import byte_tokenizer
from command import Run
from teachers.puzzles import puzzle_teacher
from teachers.server import Server

CONFIG = """
[run]
out = "{out}"
max_threads = 2
[teacher]
base_url = "{url}"
model = "puzzles"
[[questions.sources]]
kind = "file"
path = "{folder}/q.jsonl"
id = "id"
verifier = "{verifier}"
[verify]
seconds = 60.0
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """A config for a server and a verifier, in a folder of its own with everything that it names."""
    byte_tokenizer().save_pretrained(tmp_path / "student")
    row = {"id": "q", "question": "Calculate 17 + 25 - 8.", "answer": "34"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")

    def make(url: str, verifier: str) -> str:
        path = tmp_path / "c.toml"
        config = CONFIG.format(out=tmp_path / "out", url=url, folder=tmp_path, verifier=verifier)
        path.write_text(config + STUDENT.format(student=tmp_path / "student"))
        return str(path)

    return make


def test_a_verifier_beside_the_config_is_found(
    lace: Callable[..., Run], write: Callable[[str, str], str], tmp_path: Path
) -> None:
    (tmp_path / "beside_the_config.py").write_text("def check(question, answer):\n    return answer == '34'\n")
    with Server(puzzle_teacher(errors=0.0)) as server:
        run = lace("data", "run", write(server.url, "beside_the_config:check"))
    assert run.returncode == 0, run.stderr
    assert sum(len((tmp_path / "out" / part / "lattices.jsonl").open().readlines()) for part in ("train", "validation"))


@pytest.mark.parametrize(
    ("url", "verifier", "told"),
    [
        ("http://127.0.0.1:1/v1", "no_such_module:check", "verifier 'no_such_module:check': No module named"),
        ("http://teacher.invalid/v1", "exact", "no key for http://teacher.invalid/v1"),
    ],
)
def test_what_is_missing_is_told_before_the_questions_are_read(
    lace: Callable[..., Run],
    write: Callable[[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    verifier: str,
    told: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = lace("data", "run", write(url, verifier))
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)
    assert told in run.stderr
    assert not (tmp_path / "out").exists()
