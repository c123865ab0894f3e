"""Clients that leave, a full server, one that loads, one that fails, one that ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
import torch

from lace.engine.engine import Engine
from lace.engine.sampling import SamplingParams
from lace.serve import app, connection, run
from running_server import Running, serve

ASK = "Use 3, 7 and 12 to make 33"
LONG: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": ASK}], "max_tokens": 3000}
SHORT = {**LONG, "max_tokens": 5}


class Steps:
    """What the engine was doing at each of its forward passes: open requests, and lattices in the batch."""

    def __init__(self, server: Running, engine: Engine) -> None:
        self.seen: list[tuple[int, int]] = []
        self.server = server
        self.handle = engine.model.register_forward_pre_hook(self._note)

    def _note(self, module: torch.nn.Module, args: object) -> None:
        scheduler = self.server.worker._scheduler
        assert scheduler is not None
        self.seen.append((len(self.server.worker.tickets), len(scheduler.seats)))


@pytest.fixture
def server(tiny: Engine) -> Any:
    with serve(lambda: tiny, max_concurrent=2) as running:
        yield running


def test_a_stream_that_is_left_is_freed_within_two_steps(server: Running, tiny: Engine) -> None:
    steps = Steps(server, tiny)
    stream = server.client().chat.completions.create(**LONG, n=4, stream=True)
    for _ in range(20):
        next(stream)
    assert server.worker.occupancy.running == 1
    stream.close()
    server.wait_until_idle()
    assert sum(not tickets and bool(seats) for tickets, seats in steps.seen) <= 2
    assert len(steps.seen) < 1000
    assert "lace_cancelled_requests_total 1.0" in httpx2.get(f"{server.url}/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_for_the_chosen_thread_may_leave_too(server: Running, tiny: Engine, stream: bool) -> None:
    """Nothing is sent before the end, so that the server has to notice by itself."""
    steps = Steps(server, tiny)
    with pytest.raises(openai.APITimeoutError):
        for _ in server.client(timeout=0.5).chat.completions.create(**LONG, stream=stream):
            pass
    server.wait_until_idle()
    assert sum(not tickets and bool(seats) for tickets, seats in steps.seen) <= 2


def test_who_stands_in_line_may_leave(server: Running) -> None:
    streams = [server.client().chat.completions.create(**LONG, n=4, stream=True) for _ in range(4)]
    server.wait_until(lambda: server.worker.occupancy.waiting == 2)
    streams[3].close()
    streams[2].close()
    server.wait_until(lambda: server.worker.occupancy.waiting == 0)
    assert server.worker.occupancy.running == 2
    for stream in streams[:2]:
        stream.close()
    server.wait_until_idle()


def test_a_full_server_says_when_to_come_again(tiny: Engine) -> None:
    with serve(lambda: tiny, max_concurrent=1) as server:  # 4 more may wait
        streams = [server.client().chat.completions.create(**LONG, n=4, stream=True) for _ in range(5)]
        with pytest.raises(openai.RateLimitError) as refused:
            server.client().chat.completions.create(**SHORT)
        assert refused.value.response.headers["Retry-After"] == "1"
        assert refused.value.code == "queue_full"
        for stream in streams:
            stream.close()
        server.wait_until_idle()
        assert server.client().chat.completions.create(**SHORT).choices


def test_prompts_that_could_never_stand_in_line(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before they cost anything."""
    monkeypatch.delattr(app, "make_job")
    with serve(lambda: tiny, max_concurrent=1) as server:
        response = server.post({"model": "tiny", "prompt": [ASK] * 6, "max_tokens": 2}, "/v1/completions")
        assert response.status_code == 400
        assert "6 prompts are more than the 5" in response.text


def test_a_loading_server_answers_already(tiny: Engine) -> None:
    go_on = threading.Event()

    def load() -> Engine:
        go_on.wait()
        return tiny

    with serve(load, wait=False) as server:
        assert httpx2.get(f"{server.url}/health").status_code == 503
        assert httpx2.get(f"{server.url}/health").json() == {"status": "loading"}
        response = server.post(SHORT)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "2"
        assert response.json()["error"]["code"] == "model_loading"
        go_on.set()
        server.wait_until(lambda: httpx2.get(f"{server.url}/health").status_code == 200)
        assert server.post(SHORT).status_code == 200


def test_a_server_may_be_stopped_while_it_loads(tiny: Engine) -> None:
    go_on = threading.Event()

    def load() -> Engine:
        go_on.wait()
        return tiny

    with serve(load, wait=False) as server:
        pass
    assert server.worker.state == "loading"
    go_on.set()
    server.wait_until(lambda: server.worker.state == "stopped")


@contextmanager
def two_that_run(server: Running) -> Iterator[tuple[Iterator[Any], Future[httpx2.Response]]]:
    """A stream that has begun, and beside it an answer in one piece."""
    stream = server.client().chat.completions.create(**LONG, n=4, stream=True)
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(server.post, LONG)
        server.wait_until(lambda: server.worker.occupancy.running == 2)
        next(stream)
        yield stream, whole


def test_a_step_that_fails_ends_its_requests_and_no_others(server: Running, tiny: Engine) -> None:
    with two_that_run(server) as (stream, whole):

        def fail(module: torch.nn.Module, args: object) -> None:
            hook.remove()
            raise RuntimeError("out of memory, let us say")

        hook = tiny.model.register_forward_pre_hook(fail)
        with pytest.raises(openai.APIError, match="the engine failed; try again"):
            for _ in stream:
                pass
        assert whole.result().status_code == 500
        assert whole.result().json()["error"]["message"] == "the engine failed; try again"
    server.wait_until_idle()
    assert server.client().chat.completions.create(**SHORT).choices
    assert "lace_engine_failures_total 1.0" in httpx2.get(f"{server.url}/metrics").text


def test_steps_that_fail_one_after_the_other_are_bad_health(server: Running, tiny: Engine) -> None:
    """Requests are still tried, and the first that succeeds ends it."""

    def fail(module: torch.nn.Module, args: object) -> None:
        raise RuntimeError("a device that is lost, let us say")

    def health() -> tuple[int, str]:
        response = httpx2.get(f"{server.url}/health")
        return response.status_code, response.json()["status"]

    hook = tiny.model.register_forward_pre_hook(fail)
    try:
        seen = []
        for _ in range(3):
            seen.append(health())
            assert server.post(SHORT).status_code == 500
    finally:
        hook.remove()
    assert seen == [(200, "ready")] * 3
    assert health() == (503, "failing")
    assert server.post(SHORT).status_code == 200
    assert health() == (200, "ready")


def test_one_connection_too_many(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(3)]
    response = server.post(SHORT)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Connection"] == "close"
    assert response.json()["error"]["message"] == "3 connections are open; try again later"
    idle.pop().close()
    server.wait_until(lambda: server.post(SHORT).status_code == 200)
    for other in idle:
        other.close()


def test_a_server_that_ends_tells_who_waits(tiny: Engine) -> None:
    """What runs is finished, if it can be within the time of grace."""
    with ThreadPoolExecutor() as pool:
        with serve(lambda: tiny) as server:
            answer = pool.submit(server.post, {**LONG, "max_tokens": 60})
            server.wait_until(lambda: server.worker.occupancy.running == 1)
        assert answer.result().status_code == 200
        assert server.worker.state == "stopped"


def test_a_server_that_cannot_wait_longer_says_so(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.3)
    with ThreadPoolExecutor() as pool:
        with serve(lambda: tiny, max_concurrent=1) as server:
            stream = server.client().chat.completions.create(**LONG, n=4, stream=True)
            server.wait_until(lambda: server.worker.occupancy.running == 1)
            whole = pool.submit(server.post, LONG)
            server.wait_until(lambda: server.worker.occupancy.waiting == 1)
            rest = pool.submit(list, stream)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            rest.result()
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "server_stopping"


def test_an_engine_that_dies_is_replaced(server: Running) -> None:
    """Whoever was in it is told; nothing of them is left when the next one works."""
    with two_that_run(server) as (stream, whole):
        server.worker._orders.put(("add", "no ticket"))  # type: ignore[arg-type]
        assert whole.result().status_code == 500
        with pytest.raises(openai.APIError, match="the engine failed; try again"):
            list(stream)
    server.wait_until(lambda: server.worker.state == "ready")
    assert server.client().chat.completions.create(**SHORT).choices
    server.wait_until_idle()
    assert "lace_engine_failures_total 1.0" in httpx2.get(f"{server.url}/metrics").text


def test_an_engine_that_dies_before_its_first_step_ends_the_server(tiny: Engine) -> None:
    with serve(lambda: tiny) as server:
        server.worker._orders.put(("add", "no ticket"))  # type: ignore[arg-type]
        server.wait_until(lambda: isinstance(server.worker.failure, AttributeError))
        assert server.worker.state == "stopped"


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels keep megabytes for a client that does not read; here they keep little."""

    def made(self: connection.Connection, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        before(self, transport)

    before = connection.Connection.connection_made
    monkeypatch.setattr(connection.Connection, "connection_made", made)


class Slow:
    """A client that asks for a long stream and takes little of it."""

    def __init__(self, server: Running) -> None:
        body = json.dumps({**LONG, "max_tokens": 100, "n": 8, "stream": True, "logprobs": True}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert self.socket.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("small_buffers")
def test_who_does_not_take_an_answer_stands_in_nobodys_way(tiny: Engine) -> None:
    with serve(lambda: tiny, max_concurrent=1) as server:
        readers = [Slow(server) for _ in range(5)]
        server.wait_until(lambda: server.worker.occupancy.running == 0)
        assert len(server.worker.tickets) == 5
        assert server.post(SHORT).status_code == 200
        for reader in readers:
            reader.socket.close()
        server.wait_until_idle()


@pytest.mark.usefixtures("small_buffers")
def test_who_takes_nothing_for_long_counts_as_gone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKE_SECONDS", 0.5)
    reader = Slow(server)
    server.wait_until_idle()
    assert "lace_cancelled_requests_total 1.0" in httpx2.get(f"{server.url}/metrics").text
    reader.socket.close()


def test_a_fault_of_the_server_is_counted(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(lattices: int) -> Engine:
        raise RuntimeError("a mistake, let us say")

    monkeypatch.setattr(server.worker, "ready_engine", fail)
    response = server.post(SHORT)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    line = 'lace_responses_total{path="/v1/chat/completions",status="500"} 1.0'
    assert line in httpx2.get(f"{server.url}/metrics").text.splitlines()


def test_metrics_count(tiny: Engine) -> None:
    with serve(lambda: tiny) as server:
        params = SamplingParams(threads=4, max_tokens=5)
        prompt_tokens = tiny.new_lattice(ASK, params).prompt_ids
        for _ in range(3):
            assert server.post(SHORT).status_code == 200
        server.post({})
        text = httpx2.get(f"{server.url}/metrics").text
        for line in (
            'lace_responses_total{path="/v1/chat/completions",status="200"} 3.0',
            'lace_responses_total{path="/v1/chat/completions",status="400"} 1.0',
            f"lace_prompt_tokens_total {3.0 * len(prompt_tokens)}",
            "lace_generated_tokens_total 60.0",
            "lace_time_to_first_token_seconds_count 3.0",
            "lace_request_seconds_count 3.0",
            "lace_lattices_running 0.0",
            "lace_lattices_waiting 0.0",
            "lace_threads_running 0.0",
            "lace_cache_tokens 0.0",
        ):
            assert line in text.splitlines()


def test_the_command_serves_until_a_signal_ends_it() -> None:
    """One process, as users run it: its line, an answer, Ctrl-C."""
    command = [sys.executable, "-m", "lace.cli.main", "serve", "--port", "0", "--threads", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving puzzles at http://127.0.0.1:")
        client = openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0)
        messages: Any = [{"role": "user", "content": "Use 9, 14 and 6 to make 30"}]
        for _ in range(600):
            try:
                answer = client.chat.completions.create(model="puzzles", messages=messages)
                break
            except (openai.APIConnectionError, openai.InternalServerError):  # not listening yet; loading
                time.sleep(0.1)
        assert answer.choices[0].message.content
        client.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""
