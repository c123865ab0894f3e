"""Server-sent events: the threads of a request, as they write, side by side."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from lace.engine.result import LatticeResult, TokenEvent
from lace.serve.errors import ApiError
from lace.serve.replies import ChatReply, Offsets, Reply
from lace.serve.worker import Ticket
from lace.viz.trace import Trace

DONE = "data: [DONE]\n\n"


class ChoiceText:
    """One choice while it streams: what was sent adds up to the stripped text that a response without stream has."""

    def __init__(self, offsets: Offsets) -> None:
        self.offsets = offsets
        self.begun = False
        self.held = ""
        """Blanks that are sent only if something follows them."""
        self.sampled: list[tuple[int, float]] = []
        """Tokens whose text was not sent yet."""

    def add(self, event: TokenEvent) -> str:
        """Takes a token; returns what can be sent now."""
        if event.token_id is not None and event.logprob is not None:
            self.sampled.append((event.token_id, event.logprob))
        text = self.held + event.text
        text = text if self.begun else text.lstrip()
        kept = text.rstrip()
        self.held, self.begun = text[len(kept) :], self.begun or bool(kept)
        return kept

    def take(self) -> list[tuple[int, float]]:
        """The tokens since the last call."""
        sampled, self.sampled = self.sampled, []
        return sampled


async def stream(ticket: Ticket, reply: Reply) -> AsyncIterator[str]:
    """All events of one response, `[DONE]` included; an engine that fails in between is told as an event too."""
    try:
        async for chunk in _chunks(ticket, reply):
            yield _event(chunk)
    except ApiError as error:
        yield _event(error.body())
    yield DONE


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _chunks(ticket: Ticket, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    n = reply.job.choices
    threads = reply.job.lattices[0].params.threads
    by_token = reply.request.lace.exposes("exchanges")
    live = n if n > 1 or (threads == 1 and not by_token) else 0  # the chosen one of several is known at the end only
    places = [(p, thread) for p in range(len(reply.job.lattices)) for thread in range(threads)]
    texts = {place: ChoiceText(Offsets(reply.tokenizer)) for place in places}
    if isinstance(reply, ChatReply):
        for index in range(n * len(reply.job.lattices)):
            yield reply.chunk(index, None)
    results: dict[int, LatticeResult] = {}
    steps: Counter[tuple[int, int]] = Counter()
    async for p, event in ticket.events():
        if isinstance(event, Trace):
            yield await asyncio.to_thread(reply.trace_chunk, p, event)
            continue
        if isinstance(event, LatticeResult):
            results[p] = event
            if not live:
                chosen = event.threads[reply.choose(event)[0]]
                sampled = list(zip(chosen.token_ids, chosen.logprobs, strict=True))
                yield reply.chunk(p, chosen.text, None, sampled)
                yield reply.chunk(p, "", chosen.finish_reason)
            if len(results) == len(reply.job.lattices):
                last = reply.last_chunk([results[p] for p in sorted(results)])
                if last is not None:
                    yield last
            continue
        if by_token:
            yield reply.token_chunk(p, event, None if event.token_id is None else steps[p, event.thread])
            steps[p, event.thread] += 1
            continue
        if event.token_id is not None and event.logprob is None:
            continue  # the opening is given, not written
        choice = texts[p, event.thread]
        text = choice.add(event)
        if event.thread >= live:
            if text and reply.request.lace.exposes("threads"):
                yield reply.thread_chunk(p, event.thread, event.label, text)
            continue
        if text or event.finish_reason:
            yield reply.chunk(p * n + event.thread, text, event.finish_reason, choice.take(), choice.offsets)
