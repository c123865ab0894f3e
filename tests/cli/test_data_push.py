"""`lace data push` and reading back, against a server that speaks as much of the hub's protocol as that takes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import byte_tokenizer
from lace.data.jsonl import read_records
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.run import run_pipeline
from teachers.puzzles import puzzle_teacher
from teachers.server import Server

COMMIT = "a" * 40
TOKEN = "hf_token-of-the-environment"
XET_TOKENS = (("write", "main"), ("read", COMMIT))


class Hub(ThreadingHTTPServer):
    """Keeps the files of one data set. Small ones come within the commit. Large ones come before it, over Xet or, where
    the library is told not to use that, by Git LFS, and the commit names their digests."""

    def __init__(self, store: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        """Those that it can send as they are."""
        self.large: dict[str, dict[str, Any]] = {}
        """What commits say of large files, by name."""
        self.blobs: dict[str, bytes] = {}
        """What came by Git LFS, by digest."""
        self.verified: dict[str, int] = {}
        """Size that the sender tells afterwards, by digest."""
        self.store = store
        """Where Xet keeps what it is sent: its library takes a folder of this machine in the place of a server."""
        self.xet_hashes: dict[str, str] = {}
        """By name, of large files that are to be read over Xet."""
        self.created: list[dict[str, str]] = []
        self.tokens: set[str | None] = set()
        self.large_suffixes: tuple[str, ...] = ()
        self.takes_large = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def mode(self, path: str) -> str:
        """How it wants a file sent."""
        return "lfs" if path.endswith(self.large_suffixes) else "regular"

    def actions(self, oid: str) -> dict[str, dict[str, str]]:
        """What is to be done with a large file."""
        return {"upload": {"href": f"{self.url}/storage/{oid}"}, "verify": {"href": f"{self.url}/verify"}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        hub, body = self.server, self._body()
        path = self.path.partition("?")[0]
        hub.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._send({"url": f"{hub.url}/datasets/me/set"})
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif path == "/api/datasets/me/set/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            wanted = [{"path": path, "uploadMode": hub.mode(path), "shouldIgnore": False} for path in paths]
            self._send({"files": wanted})
        elif path == "/datasets/me/set.git/info/lfs/objects/batch" and hub.takes_large:
            objects = [asked | {"actions": hub.actions(asked["oid"])} for asked in json.loads(body)["objects"]]
            self._send({"transfer": "basic", "objects": objects})
        elif path == "/verify":
            told = json.loads(body)
            hub.verified[told["oid"]] = told["size"]
            self._send({})
        elif path == "/api/datasets/me/set/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.large[value["path"]] = value
                    if value["oid"] in hub.blobs:
                        hub.files[value["path"]] = hub.blobs[value["oid"]]
            self._send({"commitUrl": f"{hub.url}/datasets/me/set/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._send({"error": path}, 404)

    def do_PUT(self) -> None:
        assert "Authorization" not in self.headers, "the address may be another machine's"
        self.server.blobs[self.path.removeprefix("/storage/")] = self._body()
        self._send({})

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        files, name = hub.files, path.removeprefix(f"/datasets/me/set/resolve/{COMMIT}/")
        if path == "/api/datasets/me/set/revision/main":
            self._send({"id": "me/set", "sha": COMMIT})
        elif path == f"/api/datasets/me/set/tree/{COMMIT}":
            listed = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": _digest(files[file])} for file in files
            ] + [
                {"type": "file", "path": file, "size": hub.large[file]["size"], "oid": hub.large[file]["oid"]}
                for file in hub.xet_hashes
            ]
            self._send(listed)
        elif path in [f"/api/datasets/me/set/xet-{kind}-token/{of}" for kind, of in XET_TOKENS] and hub.takes_large:
            expires = int(time.time()) + 3600
            token = {"casUrl": f"local://{hub.store}", "accessToken": "xet", "exp": expires}
            names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
            self._send(token, headers=dict(zip(names, map(str, token.values()), strict=True)))
        elif name in hub.xet_hashes:
            large = {
                "ETag": f'"{hub.large[name]["oid"]}"',
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(hub.large[name]["size"]),
                "X-Xet-Hash": hub.xet_hashes[name],
                "X-Xet-Refresh-Route": f"{hub.url}/api/datasets/me/set/xet-read-token/{COMMIT}",
            }
            self._send({}, headers=large)
        elif name in files:
            self._send(files[name], headers={"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": COMMIT})
        else:
            self._send({"error": path}, 404)

    do_HEAD = do_GET

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

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
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "store") as server:
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


def python(tmp_path: Path, url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The library reads the hub's address once, when it is imported, so this needs processes of their own."""
    own = {
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        **variables,
    }
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **own}, capture_output=True, text=True)


def push(tmp_path: Path, url: str, made: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ("-c", "from lace.cli.main import main; main()", "data", "push", str(made), "me/set")
    return python(tmp_path, url, *command, **variables)


def found_by_training(tmp_path: Path, url: str) -> Path:
    find = "from lace.data.jsonl import find_files; print(*find_files('me/set'), sep='\\n')"
    found = python(tmp_path, url, "-c", find)
    assert found.returncode == 0, found.stderr
    (path,) = map(Path, found.stdout.splitlines())
    return path


def test_what_is_pushed_to_the_hub_is_what_training_finds_there(hub: Hub, made: Path, tmp_path: Path) -> None:
    pushed = push(tmp_path, hub.url, made)
    assert pushed.returncode == 0, pushed.stderr
    assert "me/set" in pushed.stdout
    assert [(made["type"], made["visibility"]) for made in hub.created] == [("dataset", "private")]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert set(hub.files) == {"README.md", "train.parquet", "validation.parquet"}
    assert not any(TOKEN.encode() in data for data in hub.files.values())
    path = found_by_training(tmp_path, hub.url)
    assert path.name == "train.parquet"
    assert list(read_records(path)) == list(read_records(made / "train" / "lattices.jsonl"))


def exported(made: Path) -> dict[str, bytes]:
    """What was pushed."""
    return {path.name: path.read_bytes() for path in (made / "export").iterdir()}


def named(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """What a commit is to say of large files."""
    return {
        name: {"path": name, "algo": "sha256", "oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in files.items()
        if name.endswith(".parquet")
    }


def test_large_files_arrive_over_xet(hub: Hub, made: Path, tmp_path: Path) -> None:
    """The way that the library takes by itself, on machines that there is a build of Xet for."""
    hf_xet = pytest.importorskip("hf_xet")
    hub.large_suffixes = (".parquet",)
    pushed = push(tmp_path, hub.url, made)
    assert pushed.returncode == 0, pushed.stderr
    sent = exported(made)
    assert hub.files == {"README.md": sent["README.md"]}
    assert hub.large == named(sent)
    assert len(hub.large) == 2
    assert not hub.blobs
    for name in hub.large:  # what Xet calls a file follows from its bytes
        (hashed,) = hf_xet.hash_files([str(made / "export" / name)])
        hub.xet_hashes[name] = hashed.hash
    path = found_by_training(tmp_path, hub.url)
    assert path.read_bytes() == sent["train.parquet"]


def test_large_files_arrive_by_git_lfs_where_the_library_is_told_not_to_use_xet(
    hub: Hub, made: Path, tmp_path: Path
) -> None:
    hub.large_suffixes = (".parquet",)
    pushed = push(tmp_path, hub.url, made, HF_HUB_DISABLE_XET="1")
    assert pushed.returncode == 0, pushed.stderr
    sent = exported(made)
    assert hub.files == sent
    assert hub.large == named(sent)
    assert {digest: len(data) for digest, data in hub.blobs.items()} == hub.verified
    assert found_by_training(tmp_path, hub.url).read_bytes() == sent["train.parquet"]


@pytest.mark.parametrize("xet", [True, False])
def test_a_hub_that_is_not_there_or_takes_no_large_files_is_told_in_one_line(
    hub: Hub, made: Path, tmp_path: Path, xet: bool
) -> None:
    if xet:
        pytest.importorskip("hf_xet")
    hub.large_suffixes, hub.takes_large = (".parquet",), False
    for url in ("http://127.0.0.1:1", hub.url):
        pushed = push(tmp_path, url, made, HF_HUB_DISABLE_XET=str(int(not xet)))
        assert pushed.returncode == 2
        *_, last = pushed.stderr.splitlines()
        assert "Traceback" not in pushed.stderr
        assert last.startswith("lace: error: me/set was not pushed: ")
        assert ("HF_HUB_DISABLE_XET=1" in last) == (xet and url == hub.url)
        assert TOKEN not in pushed.stderr
    assert not hub.files
