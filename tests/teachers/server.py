"""A chat-completions server over real HTTP, small enough to send half an answer or none at all."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

FOREVER = 3600.0


@dataclass
class Answer:
    """What the server sends."""

    text: str | None = ""
    """Of the message; None for a body of its own."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0
    """Seconds before it."""
    cut: float = 1.0
    """Share of the body that is sent before the connection is closed."""
    finish_reason: str = "stop"
    refusal: str | None = None


@dataclass(frozen=True)
class Request:
    """What the server was sent."""

    key: str
    """Of the call, from the header Idempotency-Key."""
    number: int
    """Requests with this key before."""
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        """The first words of the text that tells the model who it is."""
        return str(self.body["messages"][0]["content"])

    @property
    def text(self) -> str:
        """What is asked."""
        return str(self.body["messages"][-1]["content"])


Script = Callable[[Request], Answer]


class Server:
    """Serves until it is closed, from a thread of its own.

    Args:
        script: makes the answer to each request.
        log: told each request as soon as it is read.
    """

    def __init__(self, script: Script, port: int = 0, log: Callable[[Request], None] = lambda request: None) -> None:
        self.script, self.log = script, log
        self.requests: dict[str, int] = {}
        """By key."""
        self.most_at_once = 0
        self._open = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        listening = socket.create_server(("127.0.0.1", port))  # here: a port that is taken is told
        self.port = listening.getsockname()[1]

        async def start() -> None:
            self._server = await asyncio.start_server(self._connection, sock=listening, limit=2**24, backlog=1024)
            ready.set()

        def work() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(start())
            self._loop.run_forever()
            for task in (tasks := asyncio.all_tasks(self._loop)):
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        ready.wait()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
        key = headers.get("idempotency-key", "")
        request = Request(key, self.requests.get(key, 0), body, headers)
        self.requests[key] = request.number + 1
        self.log(request)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            answer = self.script(request)
            await asyncio.sleep(answer.delay)
        finally:
            self._open -= 1
        data = answer.body if answer.text is None else _completion(request, answer)
        named = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(data))}
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        sent = data[: int(len(data) * answer.cut)]
        writer.write(f"HTTP/1.1 {answer.status} X\r\n{head}\r\n".encode() + sent)
        await writer.drain()
        return answer.cut >= 1


def _completion(request: Request, answer: Answer) -> bytes:
    if answer.status != 200:
        return json.dumps({"error": {"message": answer.text, "type": "scripted", "code": None}}).encode()
    message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    prompt_tokens = sum(len(m["content"].split()) for m in request.body["messages"])
    completion_tokens = len((answer.text or "").split())
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage["total_tokens"] = prompt_tokens + completion_tokens
    return json.dumps(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": request.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
            "usage": usage,
        }
    ).encode()
