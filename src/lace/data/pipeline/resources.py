"""Opens and closes what a stage may use, in whichever process it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lace.data.pipeline.budget import Budget
from lace.data.pipeline.config import DataConfig, Endpoint
from lace.data.pipeline.context import Embed, Resources, Sampler
from lace.data.pipeline.keyed_log import KeyedLog
from lace.data.pipeline.teacher import Teacher
from lace.data.pipeline.verifiers import VerifierPool, check_verifier, named_verifiers


@dataclass(frozen=True)
class Helpers:
    """Models in this process, which the caller brings: this package knows of none."""

    sampler: Sampler | None = None
    """The base model, where the config names an engine."""
    embed: Embed | None = None
    """The sentence encoder, where the config names one."""


async def check_resources(config: DataConfig, helpers: Helpers) -> None:
    """Whether a run will have all that its stages use, so that what is missing is told before any work is done.

    Raises:
        ValueError: one line, for a key that is missing, a verifier that is not there, or a helper that was not brought.
    """
    if config.base is not None and not isinstance(config.base, Endpoint) and helpers.sampler is None:
        raise ValueError("base.engine: this executor cannot run an engine; give an endpoint as base.base_url")
    if config.solutions.encoder is not None and helpers.embed is None:
        raise ValueError("solutions.encoder: this executor has no sentence encoder; leave it out")
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
    """
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
            sampler=helpers.sampler,
            embed=helpers.embed,
            called=called,
        )
    finally:
        calls.close()
        await teacher.close()
        if base is not None:
            await base.close()
        await asyncio.to_thread(verifiers.close)
