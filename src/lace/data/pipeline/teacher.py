"""A model behind an OpenAI-compatible server: bounded concurrency, retries, and what its answers cost.

What may pass is tried again: time-outs, cut connections, 408, 409, 429, 5xx, and replies that are no completion. Waits
double and are drawn at random; a server that says when to come back (Retry-After) is not asked by anybody before, but
neither sooner than it would be without, nor left alone for longer than `LONGEST_RETRY_AFTER`. No try is made, and no
wait goes on, once the budget is spent.

Calls go over plain HTTP: at 64 in flight a client library that models every field of the protocol takes more processor
time than all the rest of the pipeline.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from lace.data.pipeline.budget import Budget
from lace.data.pipeline.config import Endpoint
from lace.data.pipeline.item import Rejection
from lace.data.pipeline.replies import Reply, schema_of
from lace.data.pipeline.text import printable, well_formed

PASSING = (408, 409, 425, 429)
"""Client errors that a later try may not meet; besides all from 500 on."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, where the server does not say."""
LONGEST_RETRY_AFTER = 600.0
"""Seconds between two tries, where it does."""
REFUSALS_PER_TRY = 20
"""429s that say when to come back, as a busy server's do, that count as one failed try."""
TELL_EVERY = 5.0
"""Seconds of a wait between two times that it is told."""
FAILURES_IN_A_ROW = 20
"""Calls without any that succeeded between them, from which on the server is taken to be down."""
LARGEST_BODY = 2**24
"""Bytes of a reply."""
SHORTEST_SECRET = 12
"""Characters of a key; what is shorter is a placeholder such as EMPTY, which a text may well hold."""
_NUMBER = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")


class CallFailed(Exception):
    """A call failed at every try; another run may have more luck."""


class _Refused(Exception):
    """The server's answer has another status than 200."""

    def __init__(self, status: int, message: str, retry_after: float | None) -> None:
        super().__init__(f"status {status}: {message}")
        self.status, self.retry_after = status, retry_after


class _NoCompletion(Exception):
    """The server's answer has status 200 and is not what was asked for."""


@dataclass(frozen=True)
class Completion:
    """What came back."""

    text: str
    refusal: str | None
    """What the model says instead of an answer, where the server tells."""
    finish_reason: str | None
    model: str
    prompt_tokens: int
    completion_tokens: int


class Teacher:
    """Calls one endpoint; to be made within an event loop.

    Args:
        endpoint: which, and how.
        concurrency: calls in flight at most.
        budget: of the run; before every try it is asked whether there is any left.
        waiting: told, while the server lets nobody in, for how many more seconds.

    Raises:
        ValueError: one line, if the environment has no key and the server is not on this machine.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        concurrency: int,
        budget: Budget,
        waiting: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        key = os.environ.get(endpoint.api_key_env)
        if not key and not any(host in endpoint.base_url for host in ("//127.0.0.1", "//localhost", "//[::1]")):
            raise ValueError(f"no key for {endpoint.base_url}: set the environment variable {endpoint.api_key_env}")
        self.endpoint, self._budget, self._waiting = endpoint, budget, waiting
        self._secret = key if key and len(key) >= SHORTEST_SECRET else None
        self._url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key or 'none'}"},
            timeout=aiohttp.ClientTimeout(total=endpoint.timeout_seconds),  # of a whole try: one that dribbles ends too
            connector=aiohttp.TCPConnector(limit=0),  # `_slots` is the limit
            proxy=_proxy(self._url),
        )
        self.structured = endpoint.structured
        self.tries = 0
        """Requests sent."""
        self._slots = asyncio.Semaphore(concurrency)
        self._closed_until = 0.0
        self._failures = 0

    async def complete(
        self, messages: list[dict[str, str]], *, seed: int, kind: type[Reply] | None, key: str
    ) -> Completion:
        """One completion.

        Args:
            messages: of the conversation.
            seed: passed on; servers that know none ignore it.
            kind: of the reply, asked for as JSON by its schema where the server does that.
            key: names the call to the server, so that a server that keeps track does not count a retry twice.

        Raises:
            CallFailed: every try failed.
            BudgetSpent: before a try.
            Rejection: the server refuses this very request.
            ValueError: one line, if the server refuses all of them: a wrong key, an unknown model, or it is down.
        """
        async with self._slots:
            failed, refused, schema, moment = 0, 0, kind, 0.0
            while True:
                await self._wait_until(moment)
                if not self.structured:
                    schema = None
                try:
                    completion = await self._try(messages, seed, schema, key)
                except (aiohttp.ClientError, TimeoutError, _Refused, _NoCompletion) as error:
                    status, seconds = _status(error), _retry_after(error)
                    if schema is not None and status in (400, 415, 422, 501):
                        schema = None  # it may refuse the schema alone; there is no one way to say so
                        continue
                    self._raise_if_final(error)
                    if status == 429 and seconds:
                        refused += 1
                    if status != 429 or not seconds or refused % REFUSALS_PER_TRY == 0:
                        failed += 1
                    if failed >= self.endpoint.tries:
                        self._count_failure(error)
                        raise CallFailed(f"{self.endpoint.base_url}: {self._told(error)}") from None
                    longest = min(LONGEST_WAIT, self.endpoint.retry_seconds * 2 ** max(0, failed - 1))
                    moment = time.monotonic() + random.uniform(longest / 2, longest)
                    if seconds:
                        closed_until = time.monotonic() + min(seconds, LONGEST_RETRY_AFTER)
                        self._closed_until = max(self._closed_until, closed_until)
                else:
                    self._failures = 0
                    if schema is None and kind is not None:
                        self.structured = False
                    return completion

    async def _try(self, messages: list[dict[str, str]], seed: int, kind: type[Reply] | None, key: str) -> Completion:
        request: Any = {"model": self.endpoint.model, "messages": messages, **self.endpoint.sampling(seed)}
        if kind is not None:
            request["response_format"] = schema_of(kind)
        self.tries += 1
        async with self._session.post(self._url, json=request, headers={"Idempotency-Key": key}) as response:
            body = self._masked(await _read(response))
        if response.status != 200:
            raise _Refused(response.status, _message(body), _seconds(response.headers.get("Retry-After", "")))
        return _read_completion(body, self.endpoint.model)

    async def _wait_until(self, moment: float) -> None:
        """Waits for a moment, for the server to let calls in again, and no longer than the budget lasts."""
        spread = random.uniform(0, min(1.0, self.endpoint.retry_seconds))  # lest all come at once
        while True:
            self._budget.check()
            closed = self._closed_until + spread - time.monotonic()
            left = max(moment - time.monotonic(), closed)
            if left <= 0:
                return
            if closed > 0:
                self._waiting(closed)
            await asyncio.sleep(min(left, self._budget.seconds_left(), TELL_EVERY))

    def _raise_if_final(self, error: Exception) -> None:
        status = _status(error)
        if status is None or status in PASSING or status >= 500:
            return
        if status in (401, 403, 404):
            hint = f"; check model = {self.endpoint.model!r} and the key in {self.endpoint.api_key_env}"
            raise ValueError(f"{self.endpoint.base_url} refuses all calls: {self._told(error)}{hint}") from None
        self._count_failure(error)
        raise Rejection("request refused", self._told(error)) from None

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise ValueError(
                f"{self.endpoint.base_url}: {self._failures} calls in a row failed, the last with: "
                f"{self._told(error)}; run again to go on"
            ) from None

    def _told(self, error: Exception) -> str:
        """An error in one line, for logs and terminals."""
        text = " ".join(printable(str(error)).split()) or type(error).__name__
        return self._masked(text.encode(errors="replace")).decode()[:300]

    def _masked(self, text: bytes) -> bytes:
        """What a server says, without the key, which an error may quote."""
        return text.replace(self._secret.encode(), b"[key]") if self._secret else text

    def price(self, completion: Completion) -> float:
        """What a completion costs."""
        prompt = self.endpoint.price_prompt * completion.prompt_tokens
        return (prompt + self.endpoint.price_completion * completion.completion_tokens) / 1e6

    async def close(self) -> None:
        await self._session.close()


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL; the client itself would look it up for each call."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, unless it is larger than any completion: a server must not fill the memory."""
    try:
        await response.content.readexactly(LARGEST_BODY)
    except asyncio.IncompleteReadError as end:
        return end.partial
    raise _NoCompletion(f"the reply has more than {LARGEST_BODY:,} bytes")


def _read_completion(body: bytes, model: str) -> Completion:
    """What a reply says. Servers differ in which fields they leave out; without a message it is no completion."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        message, usage = choice["message"], answer.get("usage") or {}
        text = message.get("content") or ""
        if isinstance(text, list):  # parts, of which some may be thoughts
            text = "".join(part["text"] for part in text if part["type"] == "text")
        if not isinstance(text, str):
            raise TypeError
        return Completion(
            text=well_formed(text),
            refusal=_text(message.get("refusal")),
            finish_reason=_text(choice.get("finish_reason")),
            model=_text(answer.get("model")) or model,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _NoCompletion(f"the reply is no completion: {body[:200]!r}") from None


def _text(value: Any) -> str | None:
    """A field that is written down, if it is a text."""
    return well_formed(value) if isinstance(value, str) else None


def _count(value: Any) -> int:
    """A number of tokens; 0 for what is none, which must not make a budget wrong."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _message(body: bytes) -> str:
    """What a refusal says, in the form of OpenAI's errors or any other."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return body[:200].decode(errors="replace")


def _status(error: Exception) -> int | None:
    return error.status if isinstance(error, _Refused) else None


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait."""
    return error.retry_after if isinstance(error, _Refused) else None


def _seconds(text: str) -> float | None:
    """The value of a header Retry-After, a number or a date; None for anything else."""
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # no date, or one with a number that no computer can hold
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
