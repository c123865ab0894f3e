"""Our engine as the base model of `lace data`, whose package knows of no models, so that the command brings one."""

from __future__ import annotations

import asyncio

from lace.cli.models import load_engine
from lace.data.pipeline.config import Engine
from lace.engine.sampling import SamplingParams


class EngineSampler:
    """Samples independent answers, one question at a time, off the event loop."""

    def __init__(self, config: Engine) -> None:
        self.config, self.engine = config, load_engine(config.engine)
        self._turn = asyncio.Lock()

    async def __call__(self, text: str, count: int, seed: int) -> list[str]:
        """What the model writes about a text, `count` times over."""
        params = SamplingParams(
            threads=count,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            max_tokens=self.config.max_tokens,
            seed=seed,
        )
        async with self._turn:
            (result,) = await asyncio.to_thread(self.engine.generate, text, params, strategy="independent")
        return [thread.text for thread in result.threads]
