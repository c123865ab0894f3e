"""`lace data push` and reading back, against a server that speaks as much of the hub's protocol as that takes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from byte_tokenizer import byte_tokenizer
from lace.data.jsonl import read_records
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.run import run_pipeline
from teachers.puzzles import puzzle_teacher
from teachers.server import Server

COMMIT = "a" * 40
TOKEN = "hf_token-of-the-environment"


class Hub(ThreadingHTTPServer):
    """Keeps the files of one data set; every file is sent within the commit, as the hub has it for small ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, str]] = []
        self.tokens: set[str | None] = set()
        self.mode = "regular"
        """How it wants files sent; as lfs, the way of large ones, it takes none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        hub.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._send({"url": f"{hub.url}/datasets/me/set"})
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif path == "/api/datasets/me/set/preupload/main":
            wanted = [
                {"path": file["path"], "uploadMode": hub.mode, "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send({"files": wanted})
        elif path == "/api/datasets/me/set/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send({"commitUrl": f"{hub.url}/datasets/me/set/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._send({"error": path}, 404)

    def do_GET(self) -> None:
        files, path = self.server.files, self.path.partition("?")[0]
        name = path.removeprefix(f"/datasets/me/set/resolve/{COMMIT}/")
        if path == "/api/datasets/me/set/revision/main":
            self._send({"id": "me/set", "sha": COMMIT})
        elif path == f"/api/datasets/me/set/tree/{COMMIT}":
            listed = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": _digest(files[file])} for file in files
            ]
            self._send(listed)
        elif name in files:
            self._send(files[name], headers={"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": COMMIT})
        else:
            self._send({"error": path}, 404)

    do_HEAD = do_GET

    def _send(self, answer: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with lattices."""
    tmp_path = tmp_path_factory.mktemp("run")
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    task = {"kind": "reasoning-gym", "task": "chain_sum", "size": 6}
    with Server(puzzle_teacher()) as teacher:
        config = DataConfig.model_validate(
            {
                "run": {"out": tmp_path / "out"},
                "teacher": {"base_url": teacher.url, "model": "puzzles"},
                "questions": {"sources": [task]},
                "student": {"tokenizer": str(tmp_path / "tokenizer"), "max_waiting": 4000},
                "steps": {"max_tokens": 4000},
                "notes": {"max_tokens": 400},
            }
        )
        run_pipeline(config, "lace data run")
    return config.run.out


def python(tmp_path: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The library reads the hub's address once, when it is imported, so this needs processes of their own."""
    own = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **own}, capture_output=True, text=True)


def push(tmp_path: Path, url: str, made: Path) -> subprocess.CompletedProcess[str]:
    return python(tmp_path, url, "-c", "from lace.cli.main import main; main()", "data", "push", str(made), "me/set")


def test_what_is_pushed_to_the_hub_is_what_training_finds_there(hub: Hub, made: Path, tmp_path: Path) -> None:
    pushed = push(tmp_path, hub.url, made)
    assert pushed.returncode == 0, pushed.stderr
    assert "me/set" in pushed.stdout
    assert [(made["type"], made["visibility"]) for made in hub.created] == [("dataset", "private")]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert set(hub.files) == {"README.md", "train.parquet", "validation.parquet"}
    assert not any(TOKEN.encode() in data for data in hub.files.values())
    find = "from lace.data.jsonl import find_files; print(*find_files('me/set'), sep='\\n')"
    found = python(tmp_path, hub.url, "-c", find)
    assert found.returncode == 0, found.stderr
    (path,) = map(Path, found.stdout.splitlines())
    assert path.name == "train.parquet"
    assert list(read_records(path)) == list(read_records(made / "train" / "lattices.jsonl"))


def test_a_hub_that_is_not_there_or_takes_no_large_files_is_told_in_one_line(
    hub: Hub, made: Path, tmp_path: Path
) -> None:
    hub.mode = "lfs"
    for url in ("http://127.0.0.1:1", hub.url):
        pushed = push(tmp_path, url, made)
        assert pushed.returncode == 2
        *_, last = pushed.stderr.splitlines()
        assert "Traceback" not in pushed.stderr
        assert last.startswith("lace: error:")
        assert TOKEN not in pushed.stderr
    assert not hub.files
