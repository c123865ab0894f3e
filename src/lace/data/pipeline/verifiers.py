"""Programs that say whether an answer is right, run in processes that are killed if they do not come to an end.

`exact`: the same text but for case and white space. `math`: the same mathematical object (math-verify).
`reasoning-gym`: the score of the task that asked. `module:function`: a function of the user, called with the question
(a dictionary of id, text, answer and data) and the answer, which returns whether that is right.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Collection
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from pebble import ProcessExpired, ProcessPool

from lace.data.pipeline.item import Question, Rejection

FULL_SCORE = 1.0
"""reasoning-gym gives parts of it for answers that merely contain the right one."""


def is_right(verifier: str, question: dict[str, Any], answer: str) -> bool:
    """Runs a verifier in this process; with a question as `Question.model_dump` makes it."""
    if not answer.strip():
        return False
    if verifier == "exact":
        return _plain(answer) == _plain(question["answer"])
    if verifier == "math":
        return _same_mathematics(question["answer"], answer)
    if verifier == "reasoning-gym":
        task = _task(json.dumps(question["data"], sort_keys=True))
        return bool(task.score_answer(answer.strip(), task[question["data"]["index"]]) >= FULL_SCORE)
    return bool(_function(verifier)(question, answer))


def _load(verifiers: tuple[str, ...]) -> None:
    for verifier in verifiers:
        check_verifier(verifier)


def check_verifier(verifier: str) -> None:
    """Raises ValueError, one line, for a verifier that is not there."""
    if verifier == "exact":
        return
    module = {"math": "math_verify", "reasoning-gym": "reasoning_gym"}.get(verifier)
    try:
        if module:
            import_module(module)
        else:
            _function(verifier)
    except ImportError as error:
        hint = "pip install 'lace-llm[data]'" if module else "verifiers are exact, math, reasoning-gym, module:function"
        raise ValueError(f"verifier {verifier!r}: {error}; {hint}") from None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _same_mathematics(expected: str, answer: str) -> bool:
    from math_verify import parse, verify

    # No time limits of their own: these work by signals in the main thread, ours by the end of the process.
    gold, found = (
        parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)
        for text in (expected, answer)
    )
    return bool(verify(gold, found, timeout_seconds=None))


@lru_cache(maxsize=16)  # a task is made for each question, so that more would be kept the longer a run goes on
def _task(data: str) -> Any:
    """The reasoning-gym task that a question is of; its questions depend on seed and index alone."""
    from reasoning_gym import create_dataset

    values = json.loads(data)
    return create_dataset(values["task"], seed=values["seed"], size=values["index"] + 1, **values["config"])


@cache
def _function(verifier: str) -> Any:
    module, colon, name = verifier.partition(":")
    if not colon:
        raise ImportError("no such verifier")
    found = getattr(import_module(module), name, None)
    if found is None:
        raise ImportError(f"{module} has no {name}")
    return found


class VerifierPool:
    """Processes that verify. They start with the first answer.

    Args:
        verifiers: that will be asked for; their libraries are loaded outside of the time limit.
        processes: how many.
        seconds: for one answer.

    Raises:
        ValueError: one line, for a verifier that is not there.
    """

    def __init__(self, verifiers: Collection[str], processes: int, seconds: float) -> None:
        for verifier in verifiers:
            check_verifier(verifier)
        self.seconds = seconds
        self._pool = ProcessPool(
            max_workers=processes,
            initializer=_load,
            initargs=(tuple(verifiers),),
            context=multiprocessing.get_context("spawn"),
        )

    async def check(self, question: Question, answer: str) -> bool:
        """Whether an answer is right.

        Raises:
            Rejection: if the verifier raises, dies, or takes too long.
        """
        work = self._pool.schedule(
            is_right, args=(question.verifier, question.model_dump(), answer), timeout=self.seconds
        )
        try:
            return await asyncio.wrap_future(work)
        except TimeoutError:
            raise Rejection("verifier time-out", f"{question.verifier} took more than {self.seconds:g} s") from None
        except ProcessExpired as error:
            raise Rejection("verifier died", f"{question.verifier}: {error}") from None
        except Exception as error:
            raise Rejection("verifier failed", f"{question.verifier}: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()
