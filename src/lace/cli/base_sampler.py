"""Our engine as the base model of `lace data`, whose package knows of no models, so that the command brings one."""

from __future__ import annotations

import asyncio

from lace.cli.models import is_shipped, load_engine
from lace.data.pipeline.config import Engine
from lace.engine.chat import chat_text
from lace.engine.sampling import SamplingParams


class EngineSampler:
    """Samples independent answers, one question at a time, off the event loop."""

    def __init__(self, config: Engine) -> None:
        self.config, self.engine, self.model = config, load_engine(config.engine), config.engine
        self._turn = asyncio.Lock()

    async def __call__(self, messages: list[dict[str, str]], count: int, seed: int) -> list[str]:
        """What the model replies to messages, `count` times over."""
        params = SamplingParams(
            threads=count,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            max_tokens=self.config.max_tokens,
            seed=seed,
        )
        async with self._turn:
            prompt = self.prompt(messages)
            (result,) = await asyncio.to_thread(self.engine.generate, prompt, params, strategy="independent")
        return [thread.text for thread in result.threads]

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """The messages in the model's chat format, as one of the user, since not every format has a system's; the same
        text for a model that has none. The embedded ones know their puzzles and no words around them."""
        if is_shipped(self.model):
            return messages[-1]["content"]
        text = "\n\n".join(message["content"] for message in messages)
        if self.engine.tokenizer.chat_template is None:
            return text
        return chat_text(self.engine.tokenizer, [{"role": "user", "content": text}])
