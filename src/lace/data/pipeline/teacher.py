"""A model behind an OpenAI-compatible server: bounded concurrency, retries, and what its answers cost.

What may pass is tried again: time-outs, cut connections, 408, 409, 429, 5xx, and replies that are no completion. Waits
double and are drawn at random; a server that says when to come back (Retry-After) is not asked by anybody before.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai import AsyncOpenAI

from lace.data.pipeline.config import Endpoint
from lace.data.pipeline.item import Rejection
from lace.data.pipeline.replies import Reply, schema_of

PASSING = (408, 409, 425, 429)
"""Client errors that a later try may not meet; besides all from 500 on."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, where the server does not say."""
FAILURES_IN_A_ROW = 20
"""Calls without any that succeeded between them, from which on the server is taken to be down."""


class CallFailed(Exception):
    """A call failed at every try; another run may have more luck."""


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
    """Calls one endpoint.

    Args:
        endpoint: which, and how.
        concurrency: calls in flight at most.

    Raises:
        ValueError: one line, if the environment has no key and the server is not on this machine.
    """

    def __init__(self, endpoint: Endpoint, concurrency: int) -> None:
        key = os.environ.get(endpoint.api_key_env)
        if not key and not any(host in endpoint.base_url for host in ("//127.0.0.1", "//localhost", "//[::1]")):
            raise ValueError(f"no key for {endpoint.base_url}: set the environment variable {endpoint.api_key_env}")
        self.endpoint = endpoint
        self.client = AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key or "none", max_retries=0, timeout=endpoint.timeout_seconds
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
            Rejection: the server refuses this very request.
            ValueError: one line, if the server refuses all of them: a wrong key, an unknown model, or it is down.
        """
        async with self._slots:
            failed, schema = 0, kind
            while True:
                await self._wait_until_open()
                if not self.structured:
                    schema = None
                try:
                    completion = await self._try(messages, seed, schema, key)
                except (openai.APIError, TimeoutError, json.JSONDecodeError) as error:
                    if schema is not None and _status(error) in (400, 415, 422, 501):
                        schema = None  # it may refuse the schema alone; there is no one way to say so
                        continue
                    self._raise_if_final(error)
                    if (seconds := _retry_after(error)) is not None:
                        self._closed_until = max(self._closed_until, time.monotonic() + seconds)
                    if seconds is None or _status(error) != 429:
                        failed += 1
                    if failed >= self.endpoint.tries:
                        self._count_failure(error)
                        raise CallFailed(f"{self.endpoint.base_url}: {_one_line(error)}") from None
                    if seconds is None:
                        longest = min(LONGEST_WAIT, self.endpoint.retry_seconds * 2 ** (failed - 1))
                        await asyncio.sleep(random.uniform(0, longest))
                else:
                    self._failures = 0
                    if schema is None and kind is not None:
                        self.structured = False
                    return completion

    async def _try(self, messages: list[dict[str, str]], seed: int, kind: type[Reply] | None, key: str) -> Completion:
        settings = self.endpoint
        request: Any = {"model": settings.model, "messages": messages, "seed": seed, "max_tokens": settings.max_tokens}
        request |= {"temperature": settings.temperature, "top_p": settings.top_p}
        if kind is not None:
            request["response_format"] = schema_of(kind)
        self.tries += 1
        # The client's own limit is on silence; a server that dribbles must end too.
        async with asyncio.timeout(settings.timeout_seconds):
            answer: Any = await self.client.chat.completions.create(**request, extra_headers={"Idempotency-Key": key})
        # What is no JSON comes back as text, and fields are not checked by the client.
        choices = getattr(answer, "choices", None)
        if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
            raise TimeoutError("the reply is no completion")
        message = choices[0].message
        usage = answer.usage
        return Completion(
            text=message.content or "",
            refusal=message.refusal,
            finish_reason=choices[0].finish_reason,
            model=answer.model or settings.model,
            prompt_tokens=usage.prompt_tokens or 0 if usage else 0,
            completion_tokens=usage.completion_tokens or 0 if usage else 0,
        )

    async def _wait_until_open(self) -> None:
        while (left := self._closed_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, min(1.0, self.endpoint.retry_seconds)))

    def _raise_if_final(self, error: Exception) -> None:
        status = _status(error)
        if status is None or status in PASSING or status >= 500:
            return
        if status in (401, 403, 404):
            hint = f"; check model = {self.endpoint.model!r} and the key in {self.endpoint.api_key_env}"
            raise ValueError(f"{self.endpoint.base_url} refuses all calls: {_one_line(error)}{hint}") from None
        self._count_failure(error)
        raise Rejection("request refused", _one_line(error)) from None

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise ValueError(
                f"{self.endpoint.base_url}: {self._failures} calls in a row failed, the last with: {_one_line(error)}; "
                "run again to go on"
            ) from None

    def price(self, completion: Completion) -> float:
        """What a completion costs."""
        prompt = self.endpoint.price_prompt * completion.prompt_tokens
        return (prompt + self.endpoint.price_completion * completion.completion_tokens) / 1e6

    async def close(self) -> None:
        await self.client.close()


def _status(error: Exception) -> int | None:
    return error.status_code if isinstance(error, openai.APIStatusError) else None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait."""
    if not isinstance(error, openai.APIStatusError):
        return None
    headers: Mapping[str, str] = error.response.headers
    text = headers.get("retry-after", "").strip()
    if text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
