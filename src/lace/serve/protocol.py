"""Request bodies of the OpenAI API, as far as this server understands them.

A field that would change the answer and is not supported is refused, but for the value that changes nothing.
Everything of ours stands under the one key `lace`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lace.lattice.config import MAX_THREADS
from lace.serve.settings import MAX_BODY_BYTES

Zero = Literal[0] | None
Threads = Annotated[int, Field(ge=1, le=MAX_THREADS)]
Text = Annotated[str, Field(max_length=MAX_BODY_BYTES)]
"""Having a limit, it is also checked for halves of surrogate pairs, which JSON can spell and no tokenizer takes."""
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


Exposed = Literal["answer", "threads", "exchanges", "verdict", "trace"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LaceOptions(_Strict):
    """What stock clients send with `extra_body={"lace": {...}}`."""

    threads: Threads | None = None
    """N. Default: `n` if that is above 1, else the server's."""
    strategy: Literal["lace", "independent"] = "lace"
    """Threads read each other, or do not."""
    select: Literal["self", "vote", "first"] = "self"
    """Who speaks for the lattice if `n` is 1: the thread that calls itself best, else the vote; the vote; thread 0."""
    expose: Annotated[list[Exposed], Field(max_length=8)] | Exposed = "answer"
    """What is told under `lace` besides the answer, one thing or several. `threads`: the texts of all threads, in a
    stream as they are written. `exchanges`, in a stream: every token by itself, with what it had read of other
    threads. `verdict`: what the task's verifier says of each answer. `trace`: the recording for `lace view`."""

    def exposes(self, what: Exposed) -> bool:
        return what in ([self.expose] if isinstance(self.expose, str) else self.expose)


class StreamOptions(_Strict):
    include_usage: bool | None = False
    include_obfuscation: Literal[False] | None = None


class _Request(_Strict):
    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    """Of streams alone."""
    n: Threads | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Sampled tokens of each thread."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    lace: LaceOptions = LaceOptions()
    user: str | None = None

    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False

    top_logprobs: Zero = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
    logprobs: Zero = None
    """0: the log-probability of each sampled token; alternatives are not supported."""

    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt
