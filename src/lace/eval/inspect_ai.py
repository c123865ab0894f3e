"""The provider `lace/MODEL` of inspect-ai: our engine in its process.

inspect-ai finds it by the package's entry point, and imports this module whenever it looks for a provider; torch comes
with the first model only.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from lace.engine.result import STRATEGIES, FinishReason, LatticeResult, Strategy, ThreadResult

if TYPE_CHECKING:
    from lace.engine.sampling import SamplingParams

STOP: dict[FinishReason, StopReason] = {"eos": "stop", "stop": "stop", "lattice": "stop", "length": "max_tokens"}
REFUSED = ("best_of", "frequency_penalty", "logit_bias", "presence_penalty", "response_schema", "top_logprobs")
"""Settings that would change the answer and are not supported."""


@modelapi(name="lace")
def lace() -> type[ModelAPI]:
    """Tells inspect-ai the class behind `lace/MODEL`."""
    return LaceAPI


class LaceAPI(ModelAPI):
    """Answers with the thread that speaks for the lattice, or with threads 0 to k-1 if `num_choices` is k.

    Requests that arrive while others decode wait, and then decode as one batch.

    Args:
        model_name: shipped name, hub id or directory.
        base_url, api_key: unused.
        config: inspect-ai's own.
        threads: N; by default `num_choices` if that is above 1, else 8.
        strategy: `lace` or `independent`.

    Raises:
        ValueError: one line, for a wrong strategy, or what `load_engine` refuses.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        threads: int | None = None,
        strategy: Strategy = "lace",
    ) -> None:
        from lace.cli.models import load_engine

        super().__init__(model_name, base_url, api_key, [], config)
        if strategy not in STRATEGIES or strategy == "swapped":
            raise ValueError(f"strategy must be lace or independent, not {strategy!r}")
        self.threads, self.strategy = threads, strategy
        self.engine = load_engine(model_name)
        self._waiting: SimpleQueue[tuple[str, SamplingParams, Future[LatticeResult]]] = SimpleQueue()
        self._engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lace-engine")

    def max_tokens(self) -> int:
        """Of each thread, where nobody says."""
        from lace.engine.sampling import SamplingParams

        return SamplingParams.max_tokens

    def max_connections(self) -> int:
        """Requests that inspect-ai sends at the same time, where nobody says; they are the next batch."""
        return 32

    def close(self) -> None:
        self._engine_thread.shutdown(wait=False, cancel_futures=True)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One lattice.

        Raises:
            ValueError: one line, for what the model or the engine cannot do.
        """
        from lace.engine.chat import conversation_text
        from lace.engine.sampling import SamplingParams

        refused = [name for name in REFUSED if getattr(config, name) is not None] + ["tools"] * bool(tools)
        if refused:
            raise ValueError(f"the provider lace does not support {refused[0]}")
        choices = config.num_choices or 1
        params = SamplingParams(
            threads=self.threads or (choices if choices > 1 else SamplingParams.threads),
            max_tokens=config.max_tokens or self.max_tokens(),
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            seed=secrets.randbits(63) if config.seed is None else config.seed,
            stop=tuple(config.stop_seqs or ()),
        )
        if choices > params.threads:
            raise ValueError(f"num_choices is {choices}, but threads only {params.threads}")
        prompt = conversation_text(self.engine.tokenizer, [_spoken(message) for message in input])
        self.engine.new_lattice(prompt, params, self.strategy)  # what is wrong with it shall not spoil its batch
        result = await self._decoded(prompt, params)
        chosen = [result.threads[result.chosen]] if choices == 1 else result.threads[:choices]
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(thread, with_logprobs=bool(config.logprobs)) for thread in chosen],
            usage=ModelUsage(
                input_tokens=result.prompt_tokens,
                output_tokens=result.completion_tokens,
                total_tokens=result.prompt_tokens + result.completion_tokens,
            ),
            time=result.seconds,
            metadata={"lace": _report(result, params)},
        )

    async def _decoded(self, prompt: str, params: SamplingParams) -> LatticeResult:
        future: Future[LatticeResult] = Future()
        self._waiting.put((prompt, params, future))
        self._engine_thread.submit(self._decode_waiting)
        return await asyncio.wrap_future(future)

    def _decode_waiting(self) -> None:
        """Decodes all that wait as one batch; who comes later finds nobody left and has nothing to do."""
        batch = [self._waiting.get() for _ in range(self._waiting.qsize())]
        batch = [waiting for waiting in batch if waiting[2].set_running_or_notify_cancel()]
        try:
            results = self.engine.generate([w[0] for w in batch], [w[1] for w in batch], strategy=self.strategy)
        except BaseException as error:
            for _, _, future in batch:
                future.set_exception(error)
            return
        for (_, _, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    def _choice(self, thread: ThreadResult, *, with_logprobs: bool) -> ChatCompletionChoice:
        logprobs = None
        if with_logprobs:
            sampled = zip(thread.token_ids, thread.logprobs, strict=True)
            texts = [(str(self.engine.tokenizer.decode([t])), p) for t, p in sampled if t not in self.engine.end_ids]
            logprobs = Logprobs(content=[Logprob(token=t, logprob=p, bytes=list(t.encode())) for t, p in texts])
        message = ChatMessageAssistant(content=thread.text, model=self.model_name, source="generate")
        return ChatCompletionChoice(message=message, stop_reason=STOP[thread.finish_reason], logprobs=logprobs)


def _spoken(message: ChatMessage) -> dict[str, str]:
    """Raises:
    ValueError: for content that is no text.
    """
    if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
        raise ValueError("the provider lace reads text alone")
    return {"role": message.role, "content": message.text}


def _report(result: LatticeResult, params: SamplingParams) -> dict[str, Any]:
    """What the log keeps of the threads; with the names that the server uses."""
    return {
        "strategy": result.strategy,
        "seed": params.seed,
        "steps": result.steps,
        "answer": result.answer,
        "chosen": result.chosen,
        "chosen_by": result.chosen_by,
        "threads": [thread.summary() | {"text": thread.text} for thread in result.threads],
    }
