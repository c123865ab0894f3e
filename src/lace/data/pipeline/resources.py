"""Opens and closes what a stage may use, in whichever process it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from lace.data.pipeline.budget import Budget
from lace.data.pipeline.config import DataConfig, Endpoint, Engine
from lace.data.pipeline.context import Embed, Resources, Sampler
from lace.data.pipeline.keyed_log import KeyedLog
from lace.data.pipeline.teacher import Teacher
from lace.data.pipeline.verifiers import VerifierPool, check_verifier, named_verifiers

SAMPLED, EMBEDDED = "pass-rate", "solutions"
"""The stages that use a model in their process."""


@dataclass
class Helpers:
    """Models that run in the process of a stage. The caller brings what loads them, since this package knows of none;
    each process that needs one loads it once. For the executor ray the loaders must survive pickling."""

    load_sampler: Callable[[], Sampler] | None = None
    """The base model, where the config names an engine."""
    load_embed: Callable[[], Embed] | None = None
    """The sentence encoder, where the config names one."""

    @cached_property
    def sampler(self) -> Sampler | None:
        return self.load_sampler() if self.load_sampler else None

    @cached_property
    def embed(self) -> Embed | None:
        return self.load_embed() if self.load_embed else None


async def check_resources(config: DataConfig, helpers: Helpers, *, load: bool) -> None:
    """Whether a run will have all that its stages use, so that what is missing is told before any work is done.

    Args:
        config: of the run.
        helpers: that were brought.
        load: whether this process will use them, and so may load them at once.

    Raises:
        ValueError: one line, for a key that is missing, a verifier that is not there, or a helper that was not brought.
        OSError: for a model that cannot be loaded.
    """
    if isinstance(config.base, Engine) and helpers.load_sampler is None:
        raise ValueError("base.engine: nothing was brought that loads an engine; give an endpoint as base.base_url")
    if config.solutions.encoder is not None and helpers.load_embed is None:
        raise ValueError("solutions.encoder: nothing was brought that loads a sentence encoder; leave it out")
    if load:
        _ = helpers.sampler, helpers.embed
    for verifier in named_verifiers(config):
        check_verifier(verifier)
    for endpoint in (config.base, config.teacher):
        if isinstance(endpoint, Endpoint):
            await Teacher(endpoint, concurrency=1, budget=Budget(config.budget)).close()


@asynccontextmanager
async def open_resources(
    config: DataConfig,
    stage: str,
    calls: KeyedLog,
    budget: Budget,
    tokenizer: PreTrainedTokenizerBase,
    helpers: Helpers,
    concurrency: int,
    called: Callable[[int, int, float], None],
    waiting: Callable[[float], None] = lambda seconds: None,
) -> AsyncIterator[Resources]:
    """What a stage may use, for as long as it runs; the log of calls is closed with it.

    Raises:
        ValueError: one line, for a key that is missing or a verifier that is not there.
        OSError: for a model that cannot be loaded.
    """
    sampler = helpers.sampler if stage == SAMPLED else None
    embed = helpers.embed if stage == EMBEDDED else None
    verifiers = VerifierPool(named_verifiers(config), config.verify.processes, config.verify.seconds)
    base = Teacher(config.base, concurrency, budget, waiting) if isinstance(config.base, Endpoint) else None
    teacher = Teacher(config.teacher, concurrency, budget, waiting)
    try:
        yield Resources(
            config=config,
            stage=stage,
            tokenizer=tokenizer,
            calls=calls,
            budget=budget,
            verifiers=verifiers,
            teacher=teacher,
            base=base,
            sampler=sampler,
            embed=embed,
            called=called,
        )
    finally:
        calls.close()
        await teacher.close()
        if base is not None:
            await base.close()
        await asyncio.to_thread(verifiers.close)
