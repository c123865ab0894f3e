"""What the server refuses, with which status, and in the form that OpenAI's clients read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from lace.engine.engine import Engine
from lace.serve import connection, gate
from lace.serve.settings import MAX_BODY_BYTES
from running_server import Running, serve

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Use 3 and 4 to make 7"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Use 3 and 4 to make 7"}


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Running]:
    with serve(lambda: tiny, max_concurrent=2, cache_tokens=3000) as running:
        yield running


def check(response: httpx2.Response, status: int, message: str = "", param: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert param is None or error["param"] == param


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "hello"}, "messages", "valid list"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "Input should be"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0", ""),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "no message of the role user"),
    ({"messages": [{"role": "user", "content": " "}]}, "", "is empty"),
    ({"tools": [{"type": "function"}]}, "tools", "at most 0 items"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", ""),
    ({"logit_bias": {"5": 1}}, "logit_bias", ""),
    ({"top_logprobs": 3}, "top_logprobs", ""),
    ({"audio": {}}, "audio", "unsupported field: audio"),
    ({"temperature": 3}, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_k": 2**63}, "top_k", "less than"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 1000}, "n", "less than or equal to 256"),
    ({"n": 4, "lace": {"threads": 2}}, "n", "n is 4, but lace.threads only 2"),
    ({"lace": {"threads": 1000}}, "lace.threads", "less than or equal to 256"),
    ({"lace": {"threads": 200}}, "", "more than the cache holds, 3000"),
    ({"lace": {"depth": 2}}, "lace.depth", "unsupported field"),
    ({"lace": {"strategy": "swapped"}}, "lace.strategy", "'lace' or 'independent'"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_completion_tokens": 10**30}, "", "too long"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stop": [""]}, "stop.0", "at least 1 character"),
    ({"stop": ["x"] * 17}, "stop", "at most 16 items"),
    ({"stream": "perhaps"}, "stream", "valid boolean"),
    ({"stream": 1}, "stream", "valid boolean"),
    ({"logprobs": "true"}, "logprobs", "valid boolean"),
    ({"n": "4"}, "n", "valid integer"),
    ({"n": True}, "n", "valid integer"),
    ({"max_tokens": 5.0}, "max_tokens", "valid integer"),
    ({"temperature": "1"}, "temperature", "valid number"),
    ({"lace": {"threads": "4"}}, "lace.threads", "valid integer"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "belong to streams"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_bad_fields_are_named(server: Running, fields: dict[str, Any], param: str, message: str) -> None:
    response = server.post({**CHAT, **fields})
    check(response, 400, message)
    assert (response.json()["error"]["param"] or "").startswith(param)


def test_values_that_change_nothing_are_taken(server: Running) -> None:
    neutral = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "top_logprobs": 0, "n": None,
        "response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}, "stop": None, "max_tokens": 2,
    }  # fmt: skip
    assert server.post({**CHAT, **neutral}).status_code == 200
    neutral = {"best_of": 1, "echo": False, "suffix": "", "logprobs": None, "max_tokens": 2}
    assert server.post({**TEXT, **neutral}, "/v1/completions").status_code == 200


def test_bad_completions(server: Running) -> None:
    for fields, param in (({"echo": True}, "echo"), ({"best_of": 3}, "best_of"), ({"prompt": []}, "prompt")):
        response = server.post({**TEXT, **fields}, "/v1/completions")
        check(response, 400)
        assert response.json()["error"]["param"].startswith(param)


def test_unknown_model_and_path(server: Running) -> None:
    check(server.post({**CHAT, "model": "gpt-5"}), 404, "no such model: 'gpt-5'; this server has 'tiny'", "model")
    check(httpx2.get(f"{server.url}/v1/models/gpt-5"), 404, "no such model")
    check(httpx2.get(f"{server.url}/v1/embeddings"), 404, "no such path: /v1/embeddings")
    check(httpx2.get(f"{server.url}/v1/chat/completions"), 405, "GET is not allowed here")
    with pytest.raises(openai.NotFoundError, match="no such model"):
        server.client().chat.completions.create(**{**CHAT, "model": "gpt-5"})


def send(server: Running, body: bytes, content_type: str = "application/json") -> httpx2.Response:
    headers = {"Content-Type": content_type}
    return httpx2.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"3", b'"text"', b"{", b'{"model": "tiny"', b"\xff\xfe{}", b'{"model": "\xc3("}',
        b"[" * 200_000, b'{"a":' * 100_000, b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"\\ud800" + b'"}]}',
        b'{"model": "tiny", "messages": NaN}', b'{"seed": ' + b"9" * 5000 + b"}", b"\x00" * 100,
    ],
    ids=lambda body: str(body[:20]),
)  # fmt: skip
def test_bodies_that_are_no_requests(server: Running, body: bytes) -> None:
    check(send(server, body), 400)


def test_other_content_types(server: Running) -> None:
    check(send(server, json.dumps(CHAT).encode(), "text/plain"), 400, "Content-Type: application/json")


def test_large_bodies(server: Running) -> None:
    """A prompt of two megabytes, announced or in pieces; and one of what a body may have, which no model can read."""
    long = json.dumps({**CHAT, "messages": [{"role": "user", "content": "7 " * 1_000_000}]}).encode()
    check(send(server, long), 413, f"more than {MAX_BODY_BYTES} bytes")

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(long), 1 << 16):
            yield long[start : start + (1 << 16)]

    check(httpx2.post(f"{server.url}/v1/chat/completions", content=pieces()), 413)
    fitting = {**CHAT, "messages": [{"role": "user", "content": "7 " * (MAX_BODY_BYTES // 2 - 1000)}]}
    check(server.post(fitting), 400, "too long")
    assert server.post({**CHAT, "max_tokens": 2}).status_code == 200


def test_a_body_that_does_not_come(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow sender is told so; until then the others are served."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        assert server.post({**CHAT, "max_tokens": 2}).status_code == 200
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
def test_a_head_that_does_not_come(server: Running, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    """Of the first request of a connection or a later one; a drop now and then is no help."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
    with connect(server) as slow:
        if before:
            slow.sendall(before)
            assert b"".join(iter(lambda: slow.recv(1), b"}")).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        time.sleep(0.3)
        slow.sendall(b"X-Slow: 1\r\n")
        assert server.post({**CHAT, "max_tokens": 2}).status_code == 200
        head, _, body = read_all(slow).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert "the head of the request did not come within 1 seconds" in json.loads(body)["error"]["message"]


def test_a_connection_on_which_nothing_comes_is_closed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    with connect(server) as silent:
        assert read_all(silent) == b""


def test_keys(tiny: Engine) -> None:
    with serve(lambda: tiny, api_keys=frozenset({"right", "other"})) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            response = server.post(CHAT, headers=headers)
            check(response, 401, "Authorization: Bearer KEY")
            assert response.headers["WWW-Authenticate"] == "Bearer"
            check(httpx2.get(f"{server.url}/v1/models", headers=headers), 401)
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        for key in ("right", "other"):
            assert server.client(api_key=key).models.list().data[0].id == "tiny"
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert httpx2.get(f"{server.url}/metrics").status_code == 200


def test_the_shipped_model_says_what_it_knows(shipped_server: Running) -> None:
    response = shipped_server.post({**CHAT, "model": "puzzles", "messages": [{"role": "user", "content": "Hello!"}]})
    check(response, 400, "the shipped model knows its tasks alone")
