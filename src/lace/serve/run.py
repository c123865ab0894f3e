"""Runs the server until a signal ends it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from lace.engine.engine import Engine
from lace.serve.app import create_app
from lace.serve.connection import Connection
from lace.serve.settings import GRACE_SECONDS, ServerSettings
from lace.serve.worker import Worker


class Server(uvicorn.Server):
    """Tells those whom it cannot wait for why their answer ends; uvicorn would cut the connection.

    Args:
        config: of uvicorn.
        worker: whose requests are meant.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace_ends = asyncio.get_running_loop().call_later(GRACE_SECONDS, self.worker.give_up)
        await super().shutdown(sockets)
        grace_ends.cancel()


def new_server(settings: ServerSettings, load: Callable[[], Engine], *, shipped: bool) -> tuple[Server, Worker]:
    """A server that has not begun to listen, and its worker; the server ends when the worker does."""

    def stop() -> None:
        server.should_exit = True

    app = create_app(settings, load, shipped=shipped, on_end=stop)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS + 5,  # for those who do not go when they are told to
        server_header=False,
    )
    server = Server(config, app.state.worker)
    return server, app.state.worker


def listen(settings: ServerSettings) -> socket.socket:
    """Takes the address.

    Raises:
        OSError: one line, if it cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener


def address(settings: ServerSettings, listener: socket.socket) -> str:
    """Where clients find it; with the real port where any free one was asked for."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


def run_server(
    settings: ServerSettings, load: Callable[[], Engine], *, shipped: bool, listening: Callable[[str], None]
) -> None:
    """Listens at once, loads the model, serves; returns after a signal, when what runs has finished or was cancelled.

    Args:
        settings, load, shipped: as for `create_app`.
        listening: told the address.

    Raises:
        OSError: if the address cannot be had.
        Exception: what `load` raised.
    """
    server, worker = new_server(settings, load, shipped=shipped)
    with listen(settings) as listener:
        listening(address(settings, listener))
        server.run(sockets=[listener])
    if worker.failure is not None:
        raise worker.failure
