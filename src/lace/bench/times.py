"""Times: a step with the lattice on against off, and tokens per second against `transformers`.

All sides run in one process and take turns, step by step or run by run, so that whatever else the machine does meets
them alike; what is reported are medians. The processor's own time is measured beside the clock's: on a busy machine it
is the steadier one (of a CPU; of a GPU it is the time to launch).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from lace.bench.subjects import plain_model, prompt_of
from lace.engine.engine import Engine
from lace.engine.result import Strategy
from lace.engine.sampling import SamplingParams

SPAN = 100
"""Steps up to a length that its time is the median of; the first tenth of a run is warm-up."""
SIDES: tuple[Strategy, Strategy] = ("lace", "independent")
TRANSFORMERS = {
    "dynamic cache, sdpa": ("dynamic", "sdpa"),
    "static cache, sdpa": ("static", "sdpa"),
    "dynamic cache, eager": ("dynamic", "eager"),
}
"""Settings of `generate` that are tried: cache, attention."""
RUNS = len(SIDES) + len(TRANSFORMERS)
"""Of a round of `throughput` with all settings."""


@dataclass(frozen=True)
class StepTime:
    """Medians over the steps that end at one length, of all rounds."""

    threads: int
    length: int
    """Generated tokens of a thread."""
    on_ms: float
    off_ms: float
    ratio: float
    """Of the step pairs, on against off."""
    on_cpu_ms: float
    off_cpu_ms: float
    cpu_ratio: float


def step_times(
    engine: Engine,
    threads: int,
    context: int,
    lengths: Sequence[int],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> list[StepTime]:
    """Times of decoding steps of one lattice, on and off; the prefill is not in them.

    Args:
        engine: whose model carries a lattice.
        threads: N.
        context: tokens of the prompt.
        lengths: generated tokens at which to look.
        rounds: runs of both sides.
        progress: called after each step of both.

    Raises:
        ValueError: one line, if prompt and lengths are too long for the model.
    """
    prompt, longest = prompt_of(engine, context), max(lengths)
    params = SamplingParams(threads=threads, max_tokens=longest, grace=None)
    wall: dict[int, list[tuple[float, float]]] = {}
    processor: dict[int, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        running = [engine.steps([engine.new_lattice(prompt, params, side, lazy=True)], side) for side in SIDES]
        for steps in running:
            next(steps)  # the prefill is in the first
        for step in range(2, longest + 1):
            spent = [(0.0, 0.0)] * 2
            for side in (0, 1) if step % 2 else (1, 0):
                clock, own = time.perf_counter(), time.process_time()
                next(running[side])
                spent[side] = time.perf_counter() - clock, time.process_time() - own
            if step > min(lengths) // 10:  # the first ones warm up
                wall.setdefault(step, []).append((spent[0][0], spent[1][0]))
                processor.setdefault(step, []).append((spent[0][1], spent[1][1]))
            progress()
    return [_at(threads, length, wall, processor) for length in lengths]


def _at(
    threads: int,
    length: int,
    wall: dict[int, list[tuple[float, float]]],
    processor: dict[int, list[tuple[float, float]]],
) -> StepTime:
    figures = []
    for by_step in (wall, processor):
        pairs = [pair for step in range(length - SPAN + 1, length + 1) for pair in by_step.get(step, [])]
        on, off = (1000 * statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        figures += [on, off, statistics.median(a / b for a, b in pairs)]
    return StepTime(threads, length, *figures)


@dataclass(frozen=True)
class Throughput:
    """Sampled tokens per second of all threads together, prefill included; medians."""

    threads: int
    tokens: int
    """Of a thread."""
    lace: float
    independent: float
    transformers: dict[str, float]
    """By its settings."""

    @property
    def ratio(self) -> float:
        """Threads that read each other, against the best settings of `transformers`."""
        return self.lace / max(self.transformers.values())


def throughput(
    engine: Engine,
    threads: int,
    context: int,
    tokens: int,
    rounds: int,
    progress: Callable[[], None] = lambda: None,
    settings: Sequence[str] = tuple(TRANSFORMERS),
) -> Throughput:
    """Our engine against `generate(num_return_sequences=N)`, both sampling at temperature 1 from all tokens.

    Args:
        engine, threads, context, rounds: as in `step_times`.
        tokens: that each thread samples.
        progress: called after each run.
        settings: of `generate`, by their names in `TRANSFORMERS`.
    """
    prompt = prompt_of(engine, context)
    params = SamplingParams(threads=threads, max_tokens=tokens, grace=None)
    sides: dict[str, Callable[[], None]] = {side: _ours(engine, prompt, params, side) for side in SIDES}
    plain = plain_model(engine.model)
    sides |= {name: _theirs(plain, engine, prompt, params, *TRANSFORMERS[name]) for name in settings}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1 + rounds):  # the first round is warm-up
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
            progress()
    speed = {name: threads * tokens / statistics.median(taken) for name, taken in seconds.items()}
    return Throughput(threads, tokens, speed.pop("lace"), speed.pop("independent"), speed)


def _ours(engine: Engine, prompt: str, params: SamplingParams, side: Strategy) -> Callable[[], None]:
    return lambda: (engine.generate(prompt, params, strategy=side), None)[1]


def _theirs(
    model: Any, engine: Engine, prompt: str, params: SamplingParams, cache: str, attention: str
) -> Callable[[], None]:
    length = len(engine.tokenizer(prompt)["input_ids"]) + params.max_tokens
    ids = torch.tensor([engine.tokenizer(prompt)["input_ids"]], device=model.device)
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=params.max_tokens,
        num_return_sequences=params.threads,
        cache_implementation=cache,
        pad_token_id=0,
    )

    def run() -> None:
        model.set_attn_implementation(attention)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert out.shape == (params.threads, length)

    return run
