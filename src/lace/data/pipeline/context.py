"""What a stage may use: asking a teacher, checking an answer, counting the student's tokens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Literal, Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from lace.data.pipeline.budget import Budget
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.item import Item, Question, Rejection
from lace.data.pipeline.keyed_log import KeyedLog, content_hash
from lace.data.pipeline.prompts import read_prompt
from lace.data.pipeline.replies import R, Reply, read_reply
from lace.data.pipeline.teacher import Completion, Teacher
from lace.data.pipeline.verifiers import VerifierPool

T = TypeVar("T")
Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Embeddings of length 1 of some texts."""


class Sampler(Protocol):
    """A base model in this process."""

    @property
    def model(self) -> str:
        """Its name."""

    def __call__(self, messages: list[dict[str, str]], count: int, seed: int) -> Awaitable[list[str]]:
        """What it replies to messages, `count` times over."""


@dataclass
class Resources:
    """What all items of a stage share; which of them there are depends on the stage."""

    config: DataConfig
    stage: str
    tokenizer: PreTrainedTokenizerBase
    calls: KeyedLog
    budget: Budget
    verifiers: VerifierPool
    teacher: Teacher
    base: Teacher | None = None
    sampler: Sampler | None = None
    embed: Embed | None = None
    called: Callable[[int, int, float], None] = lambda calls, tokens, money: None
    """Told what this stage has used in this run."""
    calls_made: int = 0
    tokens_used: int = 0
    money_used: float = 0.0

    def count(self, tokens: int, money: float) -> None:
        """Takes note of a finished call."""
        self.budget.add(tokens, money)
        self.calls_made += 1
        self.tokens_used += tokens
        self.money_used += money
        self.called(self.calls_made, self.tokens_used, self.money_used)


@dataclass
class Context:
    """What one item may use, and what it has used."""

    resources: Resources
    key: str
    """Of the item's outcome."""
    models: dict[str, None] = field(default_factory=dict)
    prompts: dict[str, None] = field(default_factory=dict)
    seeds: dict[int, None] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)
    """Replies by the reason why they could not be used."""

    @property
    def config(self) -> DataConfig:
        return self.resources.config

    def rng(self, item: Item, purpose: str) -> Random:
        """Draws that depend on the run's seed, the question and the purpose alone."""
        return Random(f"{self.config.run.seed}/{purpose}/{item.question.id}")

    async def ask(
        self,
        item: Item,
        prompt: str,
        kind: type[R],
        values: dict[str, str],
        use: Callable[[R], T],
        *,
        turn: int = 0,
    ) -> T:
        """Asks the teacher until a reply can be used.

        Args:
            item: whose question it is about.
            prompt: name of the prompt.
            kind: of the reply.
            values: for the prompt.
            use: makes something of the reply, or raises a Rejection.
            turn: tells calls of equal text apart.

        Raises:
            Rejection: that of the last of `asks` replies.
        """
        for attempt in range(self.config.asks):
            try:
                text = await self._call("teacher", item, prompt, values, kind, turn * self.config.asks + attempt)
                return use(read_reply(text, kind))
            except Rejection as rejection:
                self.unusable[rejection.reason] += 1
                last = rejection
        raise last

    async def sample(self, item: Item, turn: int) -> str:
        """One answer of the base model behind an endpoint.

        Raises:
            Rejection: if it refuses.
        """
        return await self._call("base", item, "attempt", {"question": item.question.text}, None, turn)

    async def sample_here(self, item: Item, count: int) -> list[str]:
        """Answers of the base model in this process."""
        sampler = self.resources.sampler
        assert sampler is not None
        text = read_prompt("attempt", self.config.run.prompts)
        seed = self.rng(item, "pass rate").getrandbits(31)
        self.models[sampler.model] = self.prompts[text.version] = self.seeds[seed] = None
        return await sampler(text.fill({"question": item.question.text}), count, seed)

    async def check(self, question: Question, answer: str) -> bool:
        """Whether an answer is right.

        Raises:
            Rejection: if the verifier fails or takes too long.
        """
        return await self.resources.verifiers.check(question, answer)

    def tokens(self, text: str) -> int:
        """Length of a text for the student."""
        return len(self.resources.tokenizer.tokenize(text))

    async def _call(
        self,
        role: Literal["teacher", "base"],
        item: Item,
        prompt: str,
        values: dict[str, str],
        kind: type[Reply] | None,
        turn: int,
    ) -> str:
        """The text of a reply: from the log if the call is there, else from the server, and then it is there."""
        shared = self.resources
        teacher = shared.teacher if role == "teacher" else shared.base
        assert teacher is not None
        text = read_prompt(prompt, self.config.run.prompts)
        messages, endpoint = text.fill(values), teacher.endpoint
        seed = int(content_hash(self.config.run.seed, item.question.id, text.name, turn)[:7], 16)
        sampling: list[Any] = [endpoint.temperature, endpoint.top_p, endpoint.max_tokens, seed]
        sampling += [endpoint.omit, endpoint.extra] if endpoint.omit or endpoint.extra else []
        key = content_hash(shared.stage, text.version, messages, endpoint.model, sampling)
        self.models[endpoint.model] = self.prompts[text.version] = self.seeds[seed] = None
        line = shared.calls.find(key)
        if line is None:
            started = time.perf_counter()
            completion = await teacher.complete(messages, seed=seed, kind=kind, key=key)
            line = self._line(teacher, completion, text.version, seed, time.perf_counter() - started)
            shared.calls.append(key, line)
            shared.count(completion.prompt_tokens + completion.completion_tokens, teacher.price(completion))
        if line["refusal"] or line["finish_reason"] == "content_filter":
            raise Rejection("refusal", str(line["refusal"])[:200])
        if kind is not None and line["finish_reason"] == "length":
            raise Rejection("truncated", "the reply has reached the limit of its tokens (max_tokens)")
        return str(line["text"])

    def _line(
        self, teacher: Teacher, completion: Completion, prompt: str, seed: int, seconds: float
    ) -> dict[str, object]:
        return {
            "item": self.key,
            "prompt": prompt,
            "model": teacher.endpoint.model,
            "served_model": completion.model,
            "sampling": teacher.endpoint.sampling(seed),
            "text": completion.text,
            "refusal": completion.refusal,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "cost": teacher.price(completion),
            "seconds": round(seconds, 4),
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
