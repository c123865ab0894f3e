"""The threads of one prompt while they decode: what they have written, and what ends them.

Tensors are kept elsewhere; this is the bookkeeping that all ways of batching share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from lace.engine.detokenize import Detokenizer
from lace.engine.result import FinishReason, LatticeResult, Strategy, ThreadResult, TokenEvent
from lace.engine.sampling import SamplingParams, draw_uniforms
from lace.engine.selection import choose_thread, read_answer, read_tag


@dataclass(eq=False)
class Thread:
    """One thread while it decodes."""

    label: int
    opening: list[int]
    opening_texts: list[str]
    """What each token of the opening adds to the text."""
    detokenizer: Detokenizer
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass(eq=False)
class Lattice:
    """One prompt while it decodes."""

    index: int
    """Number of the prompt in its events."""
    prompt: str
    prompt_ids: list[int]
    params: SamplingParams
    strategy: Strategy
    threads: list[Thread]
    end_ids: frozenset[int]
    deadline: int | None = None
    """Step of the early stop, once a thread has closed with `[[best]]`."""
    step_seconds: list[float] = field(default_factory=list)
    """From its start to the tokens of each step."""

    @cached_property
    def uniforms_SN(self) -> torch.Tensor:
        """The draws, made when decoding begins: a lattice that is refused for its size must not cost memory."""
        return draw_uniforms(self.params, self.max_steps)

    @property
    def running(self) -> bool:
        return any(thread.finish is None for thread in self.threads)

    @property
    def max_steps(self) -> int:
        return self.params.max_tokens + max(len(thread.opening) for thread in self.threads)

    def write(self, n: int, step: int, token: int, logprob: float) -> TokenEvent:
        """Adds one token to thread `n` and decides whether that ends it."""
        thread = self.threads[n]
        if step < len(thread.opening):
            return TokenEvent(self.index, n, thread.label, token, thread.opening_texts[step], None, None)
        thread.token_ids.append(token)
        thread.logprobs.append(logprob)
        thread.detokenizer.add(token)
        if token in self.end_ids:
            thread.finish = "eos"
        elif thread.detokenizer.stopped:
            thread.finish = "stop"
        elif len(thread.token_ids) == self.params.max_tokens:
            thread.finish = "length"
        text = thread.detokenizer.take(final=thread.finish is not None)
        closed = thread.finish in ("eos", "stop") and read_tag(thread.detokenizer.text) == "best"
        if closed and self.deadline is None and self.params.grace is not None:
            self.deadline = step + self.params.grace
        return TokenEvent(self.index, n, thread.label, token, text, logprob, thread.finish)

    def close_early(self, step: int) -> list[TokenEvent]:
        """Ends the threads that are still at it some time after another has closed with `[[best]]`."""
        if self.deadline is None or step < self.deadline:
            return []
        events = []
        for n, thread in enumerate(self.threads):
            if thread.finish is None:
                thread.finish = "lattice"
                text = thread.detokenizer.take(final=True)
                events.append(TokenEvent(self.index, n, thread.label, None, text, None, "lattice"))
        return events

    def result(self) -> LatticeResult:
        """All threads, which have ended, and the one that speaks for them."""
        threads = []
        for n, thread in enumerate(self.threads):
            assert thread.finish is not None
            text = thread.detokenizer.text.strip()
            threads.append(
                ThreadResult(
                    index=n,
                    label=thread.label,
                    text=text,
                    token_ids=thread.token_ids,
                    logprobs=thread.logprobs,
                    finish_reason=thread.finish,
                    tag=read_tag(text),
                    answer=read_answer(text),
                )
            )
        chosen, chosen_by = choose_thread([t.tag for t in threads], [t.answer for t in threads])
        return LatticeResult(
            prompt=self.prompt,
            strategy=self.strategy,
            threads=threads,
            chosen=chosen,
            chosen_by=chosen_by,
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=sum(len(t.token_ids) for t in threads),
            steps=len(self.step_seconds),
            seconds=self.step_seconds[-1],
            step_seconds=self.step_seconds,
        )


def opening_ids(tokenizer: PreTrainedTokenizerBase, opening: str, label: int) -> list[int]:
    """The given tokens that a thread begins with; `opening` as in `LatticeConfig`, empty for none."""
    text = opening.format(label=label)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def new_thread(
    tokenizer: PreTrainedTokenizerBase, opening: str, label: int, stop: tuple[str, ...], *, lazy: bool
) -> Thread:
    """A thread that has written nothing yet; a `lazy` one has no text before its end."""
    ids = opening_ids(tokenizer, opening, label)
    grown = ["", *(str(tokenizer.decode(ids[: n + 1])) for n in range(len(ids)))]
    texts = [now[len(before) :] for before, now in pairwise(grown)]
    return Thread(label, ids, texts, Detokenizer(tokenizer, stop, lazy=lazy))
