"""Programs that say whether an answer is right, run in processes that are killed if they do not come to an end.

`exact`: the same text but for case, white space and how its characters are composed. `math`: the same mathematical
object (math-verify).
`reasoning-gym`: the score of the task that asked. `module:function`: a function of the user, called with the question
(a dictionary of id, text, answer and data) and the answer, which returns whether that is right.

Answers are a model's text, and none of it is executed. What math-verify 0.9 does was read: it evaluates expressions of
digits, signs and brackets alone, and of LaTeX it makes symbols. See `gym_scores` for reasoning-gym.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import re
import unicodedata
from collections.abc import Collection
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from lace.data.pipeline import gym_scores
from lace.data.pipeline.config import ChampSource, DataConfig, ReasoningGymSource
from lace.data.pipeline.item import Question, Rejection
from lace.data.pipeline.text import read_spelled

LONGEST_MESSAGE = 500
"""Characters of what an error says that are kept."""
_FREE_NAME = re.compile(r"\\variable|__")
"""The one way in LaTeX to a symbol whose name is any text, and what Python's own names hold; no answer needs them."""


def is_right(verifier: str, question: dict[str, Any], answer: str) -> bool:
    """Runs a verifier in this process, on the answer as it is and, where that is not right, as it is meant if it is
    spelled in one line.

    Args:
        verifier: its name.
        question: as `Question.model_dump` makes it.
        answer: whatever a model says.
    """
    return any(_is_right(verifier, question, text) for text in dict.fromkeys((answer, read_spelled(answer))))


def _is_right(verifier: str, question: dict[str, Any], answer: str) -> bool:
    if not answer.strip():
        return False
    if verifier == "exact":
        return _plain(answer) == _plain(question["answer"])
    if verifier == "math":
        return _same_mathematics(question["answer"], answer)
    if verifier == "reasoning-gym":
        return gym_scores.is_right(question["data"], answer)
    return bool(_function(verifier)(question, answer))


def _verdict(verifier: str, question: dict[str, Any], answer: str) -> bool | str:
    """Whether an answer is right, or what kept the verifier from saying so. An error itself must not go back to the
    other process: one that cannot be read there would end the pool, and `sys.exit` the run."""
    try:
        return is_right(verifier, question, answer)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]


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
        known = "verifiers are exact, math, reasoning-gym, module:function, a module beside the config or installed"
        hint = "pip install 'lace-llm[data]'" if module else known
        raise ValueError(f"verifier {verifier!r}: {error}; {hint}") from None


def named_verifiers(config: DataConfig) -> set[str]:
    """All verifiers that the questions of a run may name."""
    fixed = {ChampSource: "math", ReasoningGymSource: "reasoning-gym"}
    return {fixed.get(type(source)) or source.verifier for source in config.questions.sources}  # type: ignore[union-attr]


def verifier_source(verifier: str) -> str:
    """A digest of the file that a user's function stands in; empty for the verifiers of this package.

    Raises:
        ValueError: one line, for a verifier that is not there.
    """
    check_verifier(verifier)
    module, colon, _ = verifier.partition(":")
    path = import_module(module).__file__ if colon else None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()  # questions and their answers are composed


def _same_mathematics(expected: str, answer: str) -> bool:
    from math_verify import parse, verify

    if _FREE_NAME.search(answer):
        return False
    # No time limits of their own: these work by signals in the main thread, ours by the end of the process.
    gold, found = (
        parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)
        for text in (expected, answer)
    )
    return bool(verify(gold, found, timeout_seconds=None))


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
            ValueError: one line, if no verifier can be run.
        """
        work = self._pool.schedule(
            _verdict, args=(question.verifier, question.model_dump(), answer), timeout=self.seconds
        )
        try:
            verdict = await asyncio.wrap_future(work)
        except TimeoutError:
            message = f"{question.verifier} took more than verify.seconds = {self.seconds:g}"
            raise Rejection("verifier time-out", message) from None
        except ProcessExpired as error:
            raise Rejection("verifier died", f"{question.verifier}: {error}") from None
        except Exception as error:  # of the processes, not of this answer: nobody's item is rejected for it
            raise ValueError(f"the processes of verifiers ended: {error}; run again to go on") from None
        if isinstance(verdict, str):
            raise Rejection("verifier failed", f"{question.verifier}: {verdict}")
        return verdict

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()
