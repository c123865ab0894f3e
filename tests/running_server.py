"""Real servers on real sockets, in this process, so that a test can look into the engine that it talks to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2
from openai import OpenAI

from lace.engine.engine import Engine
from lace.serve.run import address, listen, new_server
from lace.serve.settings import ServerSettings
from lace.serve.worker import Worker


class Running(NamedTuple):
    """A server that listens."""

    url: str
    worker: Worker

    def client(self, **settings: Any) -> OpenAI:
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **settings})

    def post(self, body: object, path: str = "/v1/chat/completions", **settings: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=60, **settings)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Waits for what another thread does soon."""
        for _ in range(3000):
            if holds():
                return
            time.sleep(0.01)
        raise AssertionError("it did not come about within 30 seconds")

    def wait_until_idle(self) -> None:
        """Nothing is left in the engine: no ticket, no lattice, no cache."""
        self.wait_until(lambda: not self.worker.tickets and not any(vars(self.worker.occupancy).values()))
        assert not self.worker._owners
        scheduler = self.worker._scheduler
        assert scheduler is not None
        assert not scheduler.busy
        assert scheduler.cache is None
        assert scheduler.lattice_cache is None


@contextmanager
def serve(
    load: Callable[[], Engine], *, shipped: bool = False, wait: bool = True, **settings: Any
) -> Iterator[Running]:
    """A server on a free port, until the block is left."""
    chosen = ServerSettings(**{"model": "tiny", "port": 0, "threads": 4, **settings})
    server, worker = new_server(chosen, load, shipped=shipped)
    with listen(chosen) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = Running(address(chosen, listener), worker)
        try:
            running.wait_until(lambda: server.started)
            if wait:
                running.wait_until(lambda: worker.state != "loading")
            yield running
        finally:
            server.should_exit = True
            thread.join()
