"""Connections that wait for nobody for ever, not for the head of a request, nor for a client to take its answer; and
not too many of them.

What uvicorn has no limits for. The body of a request is the gate's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lace.serve.errors import ApiError
from lace.serve.settings import HEAD_SECONDS, MAX_CONNECTIONS, TAKE_SECONDS


class Timer:
    """A call that is made unless it is cancelled before."""

    def __init__(self, seconds: float, call: Callable[[], object]) -> None:
        self.seconds, self.call = seconds, call
        self.handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Has no effect on one that runs."""
        self.handle = self.handle or asyncio.get_running_loop().call_later(self.seconds, self.call)

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None


class Connection(H11Protocol):
    """One connection of uvicorn's."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.is_one_too_many = len(self.connections) > MAX_CONNECTIONS
        self.head_timer = Timer(HEAD_SECONDS, self._head_is_missing)
        self.take_timer = Timer(TAKE_SECONDS, self.transport.abort)
        self.head_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self.head_timer.cancel()
        self.take_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_one_too_many:  # told now, not before: bytes that nobody has read would cut the answer off
            self._refuse(
                ApiError(503, f"{MAX_CONNECTIONS} connections are open; try again later", code="busy", retry_after=1)
            )
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # no head, or not all of it
            self.head_timer.start()
        else:
            self.head_timer.cancel()

    def _head_is_missing(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            message = f"the head of the request did not come within {HEAD_SECONDS:.0f} seconds"
            self._refuse(ApiError(408, message))
        else:  # nobody has asked for anything
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers before the application has heard of the request, and closes."""
        answer = error.response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=error.status, headers=headers, reason=HTTPStatus(error.status).phrase.encode()),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        self.take_timer.start()

    def resume_writing(self) -> None:
        self.take_timer.cancel()
        super().resume_writing()
