"""From what a client asks to what the engine decodes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from lace.cli.defaults import MAX_TOKENS, TEMPERATURE, TOP_P
from lace.cli.models import shipped_puzzle
from lace.engine.chat import conversation_text
from lace.engine.engine import Engine
from lace.engine.sampling import SamplingParams
from lace.engine.threads import Lattice
from lace.serve.errors import ApiError
from lace.serve.protocol import ChatRequest, CompletionRequest, Message
from lace.tasks.task import Puzzle, find_task


@dataclass(frozen=True)
class Defaults:
    """Sampling of a request that does not say."""

    max_tokens: int = SamplingParams.max_tokens
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Job:
    """The lattices of one request, and what of them it returns."""

    lattices: list[Lattice]
    """One for each prompt."""
    choices: int
    """n: 1 for the chosen thread of each lattice, else its first n threads."""
    seed: int
    puzzles: list[Puzzle | None]
    """What each prompt asks, if its answer shall be verified and can be."""


def make_job(engine: Engine, request: ChatRequest | CompletionRequest, *, threads: int, shipped: bool) -> Job:
    """Tokenizes the prompts and checks what is asked for.

    Args:
        engine: that will decode the job.
        request: a valid one.
        threads: N of a request that does not say.
        shipped: whether the model is an embedded one, which knows its tasks and nothing else.

    Raises:
        ApiError: 400, for what the model cannot do.
    """
    choices = request.n or 1
    count = request.lace.threads or (choices if choices > 1 else threads)
    if choices > count:
        raise ApiError(400, f"n is {choices}, but lace.threads only {count}", param="n", code="invalid_value")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options belong to streams", param="stream_options", code="invalid_value")
    if request.lace.exposes("exchanges") and not (request.stream and choices == 1):
        raise ApiError(400, "exchanges are told in streams with n=1 only", param="lace.expose", code="invalid_value")
    seed = secrets.randbits(53) if request.seed is None else request.seed  # JavaScript reads no longer integers
    if isinstance(request, ChatRequest):
        prompts = [chat_prompt(engine, request.messages)]
        questions = (user_texts(request.messages) or [""])[-1:]
        max_tokens = request.max_completion_tokens or request.max_tokens
    else:
        prompts = questions = request.prompts
        max_tokens = request.max_tokens
    shown = any(request.lace.exposes(what) for what in ("threads", "exchanges"))
    every_text = bool(request.stream) and (count == 1 or choices > 1 or shown)
    verified = any(request.lace.exposes(what) for what in ("verdict", "trace"))
    lattices = []
    try:
        for index, prompt in enumerate(prompts):
            text, defaults = known_task(prompt) if shipped else (prompt, Defaults())
            params = SamplingParams(
                threads=count,
                max_tokens=max_tokens or defaults.max_tokens,
                temperature=defaults.temperature if request.temperature is None else request.temperature,
                top_p=defaults.top_p if request.top_p is None else request.top_p,
                top_k=request.top_k or 0,
                seed=seed,
                stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
            )
            lattices.append(engine.new_lattice(text, params, request.lace.strategy, index=index, lazy=not every_text))
    except ValueError as error:
        code = "context_length_exceeded" if "too long" in str(error) else "invalid_value"
        raise ApiError(400, str(error), code=code) from None
    return Job(lattices, choices, seed, [find_puzzle(q) if verified else None for q in questions])


def chat_prompt(engine: Engine, messages: list[Message]) -> str:
    """The conversation in the model's chat format; the last user message of models that have none.

    Raises:
        ApiError: 400, if there is no user message, or the format refuses the conversation.
    """
    from jinja2 import TemplateError

    # Chat formats know `system`, the former name of `developer`; many leave out what they do not know.
    spoken = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
    try:
        return conversation_text(engine.tokenizer, spoken)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None
    except TemplateError as error:
        raise ApiError(400, f"the model's chat format: {error}", param="messages", code="invalid_value") from None


def user_texts(messages: list[Message]) -> list[str]:
    """What the user said, in order."""
    return [message.text for message in messages if message.role == "user"]


def find_puzzle(question: str) -> Puzzle | None:
    """The puzzle that a question asks, None if there is no verifier for it."""
    try:
        return find_task(question)[1]
    except ValueError:
        return None


def known_task(prompt: str) -> tuple[str, Defaults]:
    """The question in the words that the shipped models know, and the sampling that suits its task.

    Raises:
        ValueError: for other questions, or one that is beyond them.
    """
    name, puzzle = shipped_puzzle(prompt)
    return puzzle.prompt, Defaults(MAX_TOKENS[name], TEMPERATURE[name], TOP_P)
