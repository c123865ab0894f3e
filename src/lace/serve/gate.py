"""What every request passes first: the key, the size of its body, the count of responses.

A body is read here as a whole before anything else happens, so that one that is too large or too slow costs nothing
more, and nobody learns anything without a key.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lace.serve.errors import ApiError
from lace.serve.metrics import Metrics
from lace.serve.settings import BODY_SECONDS, MAX_BODY_BYTES

DRAINED_BYTES = 16 * MAX_BODY_BYTES
"""Of a body that is too large so much is read and forgotten, so that the client comes to read why."""


class Gate:
    """ASGI middleware.

    Args:
        app: what lies behind.
        keys: API keys; none if nobody is asked for one.
        metrics: where responses are counted.
        paths: those that are counted by name.
    """

    def __init__(self, app: ASGIApp, keys: frozenset[str], metrics: Metrics, paths: Iterable[str]) -> None:
        self.app, self.keys, self.metrics, self.paths = app, keys, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.responses.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            if scope["path"].startswith("/v1/"):
                self._check_key(headers.get(b"authorization", b""))
            body = await _read_body(receive, headers.get(b"content-length", b"0"))
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        if body is None:
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()  # only the client's leaving is still to come
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, replay, counted)
        except Exception:
            if not begun:  # what is answered now does not come by here
                self.metrics.responses.labels(path, "500").inc()
            raise

    def _check_key(self, authorization: bytes) -> None:
        if not self.keys:
            return
        scheme, _, given = authorization.partition(b" ")
        # All keys are compared, each in constant time: the time tells nothing about them.
        matches = [hmac.compare_digest(given.strip(), key.encode()) for key in self.keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(401, "give a valid API key: Authorization: Bearer KEY", code="invalid_api_key")


async def _read_body(receive: Receive, length: bytes) -> bytes | None:
    """The whole body; None if the client left before it was sent.

    Raises:
        ApiError: 413 if it is too large, 408 if it does not come.
    """
    announced = int(length) if length.isdigit() and len(length) < 20 else 0
    parts: list[bytes] = []
    size, more = 0, announced <= DRAINED_BYTES
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more and size <= DRAINED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                size += len(message.get("body", b""))
                if size <= MAX_BODY_BYTES:
                    parts.append(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} seconds") from None
    if max(size, announced) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large")
    return b"".join(parts)
