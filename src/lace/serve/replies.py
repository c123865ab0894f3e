"""Responses and stream chunks of both endpoints, and the report under `lace`."""

from __future__ import annotations

import base64
import gzip
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lace.engine.detokenize import Detokenizer
from lace.engine.engine import Engine
from lace.engine.result import FinishReason, LatticeResult, ThreadResult, TokenEvent
from lace.engine.selection import ChosenBy, choose_thread
from lace.serve.prompts import Job
from lace.serve.protocol import ChatRequest, CompletionRequest
from lace.viz.trace import Trace, record

Sampled = Sequence[tuple[int, float]]
"""Tokens and their log-probabilities."""
_FINISH: dict[FinishReason, str] = {"eos": "stop", "stop": "stop", "lattice": "stop", "length": "length"}


class Offsets:
    """Where in the text of a thread each of its tokens begins."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.detokenizer = Detokenizer(tokenizer, ())

    def add(self, token_id: int) -> int:
        """Takes the next token; blanks before the text, which are not sent, do not count."""
        offset = len(self.detokenizer.text.lstrip())
        self.detokenizer.add(token_id)
        return offset


class Reply(ABC):
    """One request's answer; the two endpoints differ in how they write a choice.

    Args:
        request: what was asked.
        job: what is decoded for it.
        tokenizer: the model's.
        end_ids: tokens that end a thread; they are no part of log-probabilities.
        fingerprint: of the weights.
    """

    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        job: Job,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        fingerprint: str,
    ) -> None:
        self.request, self.job, self.tokenizer, self.end_ids = request, job, tokenizer, end_ids
        self.fingerprint = fingerprint
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.with_logprobs = request.logprobs is not None and request.logprobs is not False

    def whole(self, results: list[LatticeResult], traces: list[Trace]) -> dict[str, Any]:
        """The response that is no stream; `traces` are those of all prompts, or none."""
        choices = []
        for index, thread in self.chosen_threads(results):
            sampled = list(zip(thread.token_ids, thread.logprobs, strict=True))
            logprobs = self.logprobs(sampled, Offsets(self.tokenizer))
            choices.append(self.choice(index, thread.text, _FINISH[thread.finish_reason], logprobs))
        report = self.report(results)
        for told, trace in zip(report.get("prompts", [report]), traces, strict=False):
            told["trace"] = packed(trace)
        return {**self._envelope(self.kind, choices), "usage": usage(results), "lace": report}

    def chosen_threads(self, results: list[LatticeResult]) -> list[tuple[int, ThreadResult]]:
        """The threads that are returned, each with the index of its choice."""
        n = self.job.choices
        if n == 1:
            return [(p, result.threads[self.choose(result)[0]]) for p, result in enumerate(results)]
        return [(p * n + thread.index, thread) for p, r in enumerate(results) for thread in r.threads[:n]]

    def choose(self, result: LatticeResult) -> tuple[int, ChosenBy]:
        threads = result.threads
        return choose_thread([t.tag for t in threads], [t.answer for t in threads], self.request.lace.select)

    def report(self, results: list[LatticeResult]) -> dict[str, Any]:
        """What stands under `lace`: of one prompt directly, of several as a list."""
        each = [self._report_one(p, result) for p, result in enumerate(results)]
        return each[0] if len(each) == 1 else {"prompts": each}

    def _report_one(self, prompt: int, result: LatticeResult) -> dict[str, Any]:
        chosen, chosen_by = self.choose(result)
        told = self.request.lace.exposes
        verdicts = self.verdicts(prompt, result)
        threads = []
        for thread in result.threads:
            threads.append(
                thread.summary()
                | {"selected": thread.index == chosen}
                | ({"text": thread.text} if told("threads") else {})
                | ({"correct": verdicts[thread.index]} if told("verdict") else {})
            )
        return {
            "strategy": result.strategy,
            "seed": self.job.seed,
            "steps": result.steps,
            "seconds": round(result.seconds, 4),
            "answer": result.threads[chosen].answer,
            "chosen": chosen,
            "chosen_by": chosen_by,
            "threads": threads,
        } | ({"correct": verdicts[chosen]} if told("verdict") else {})

    def verdicts(self, prompt: int, result: LatticeResult) -> list[bool | None]:
        """The verifier's word on each thread's answer; None where there is no verifier, or nobody has asked it."""
        puzzle = self.job.puzzles[prompt]
        return [None if puzzle is None else puzzle.check(thread.answer) for thread in result.threads]

    def record(self, engine: Engine, prompt: int, result: LatticeResult) -> Trace:
        """The recording of a prompt that has ended; takes the model for a second reading."""
        chosen, chosen_by = self.choose(result)
        result = replace(result, chosen=chosen, chosen_by=chosen_by)
        return record(engine, result, model=self.request.model, correct=self.verdicts(prompt, result))

    def chunk(
        self,
        index: int,
        text: str | None,
        finish: FinishReason | None = None,
        sampled: Sampled = (),
        offsets: Offsets | None = None,
    ) -> dict[str, Any]:
        """A piece of one choice; `text` is None in a chat's first chunk of a choice. `offsets`: of its thread, if the
        piece does not begin it."""
        logprobs = self.logprobs(sampled, offsets or Offsets(self.tokenizer)) if sampled else None
        delta = self.delta(index, text, _FINISH[finish] if finish else None, logprobs)
        return self._envelope(self.chunk_kind, [delta])

    def last_chunk(self, results: list[LatticeResult]) -> dict[str, Any] | None:
        """Behind all choices: usage if that was asked for, and our report for who knows `lace`."""
        counted = self.request.stream_options is not None and self.request.stream_options.include_usage
        if not counted and "lace" not in self.request.model_fields_set:
            return None
        chunk = {**self._envelope(self.chunk_kind, []), "lace": self.report(results)}
        return {**chunk, "usage": usage(results)} if counted else chunk

    def thread_chunk(self, prompt: int, thread: int, label: int, text: str) -> dict[str, Any]:
        """A piece of a thread that is no choice: stock clients see an empty piece of the first choice."""
        return {
            **self.chunk(prompt * self.job.choices, ""),
            "lace": {"prompt": prompt, "thread": thread, "label": label, "delta": text},
        }

    def token_chunk(self, prompt: int, event: TokenEvent, step: int | None) -> dict[str, Any]:
        """A token by itself, with what it had read; `step` is None where a thread ends without a token."""
        readings = [{"thread": r.thread, "step": r.step, "weight": round(r.weight, 4)} for r in event.readings]
        told = {
            "prompt": prompt,
            "thread": event.thread,
            "label": event.label,
            "step": step,
            "given": step is not None and event.logprob is None,
            "delta": event.text,
            "finish_reason": event.finish_reason,
            "exchanges": readings,
        }
        return {**self.chunk(prompt, ""), "lace": told}

    def trace_chunk(self, prompt: int, trace: Trace) -> dict[str, Any]:
        """A recording, behind the result of its prompt."""
        return {**self._envelope(self.chunk_kind, []), "lace": {"prompt": prompt, "trace": packed(trace)}}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    @abstractmethod
    def choice(self, index: int, text: str, finish: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def delta(
        self, index: int, text: str | None, finish: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """A piece of a choice; `text` is None in the first."""

    @abstractmethod
    def logprobs(self, sampled: Sampled, offsets: Offsets) -> dict[str, Any] | None:
        """Log-probabilities of tokens; None if nobody asked. `offsets`: of the thread, which go on with them."""

    def token_texts(self, sampled: Sampled) -> list[tuple[str, float]]:
        """Texts and log-probabilities, end tokens left out."""
        return [(str(self.tokenizer.decode([t])), value) for t, value in sampled if t not in self.end_ids]


class ChatReply(Reply):
    """Of `/v1/chat/completions`."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, text: str, finish: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def delta(
        self, index: int, text: str | None, finish: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""} if text is None else {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, sampled: Sampled, offsets: Offsets) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in self.token_texts(sampled)
        ]
        return {"content": content, "refusal": None}


class CompletionReply(Reply):
    """Of `/v1/completions`."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, text: str, finish: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def delta(
        self, index: int, text: str | None, finish: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text or "", "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, sampled: Sampled, offsets: Offsets) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        texts = self.token_texts(sampled)
        return {
            "tokens": [text for text, _ in texts],
            "token_logprobs": [value for _, value in texts],
            "top_logprobs": None,
            "text_offset": [offsets.add(token) for token, _ in sampled if token not in self.end_ids],
        }


def packed(trace: Trace) -> str:
    """The file that `lace solve --trace` writes, gzip in base64."""
    return base64.b64encode(gzip.compress(trace.to_bytes(), mtime=0)).decode()


def usage(results: list[LatticeResult]) -> dict[str, int]:
    """Tokens of all threads, chosen or not: that is what they cost."""
    prompt, completion = (sum(getattr(r, name) for r in results) for name in ("prompt_tokens", "completion_tokens"))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
