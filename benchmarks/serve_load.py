"""Many streaming clients against one server: are their answers the offline engine's, does anything leak, who waits?

    python benchmarks/serve_load.py [--clients 200] [--seconds 300] [--leaving 0.2] [--json FILE]

Starts `lace serve` with the shipped model. Clients ask puzzles of both tasks with 1 to 8 threads and budgets of 20 to
100 tokens, one request after the other; some leave in the middle of a stream. In the end the server must be empty, its
memory flat, and every finished answer the one that the offline engine gives to its seed, or part from it at a draw that
rounding decides (`lace.engine.parity`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from figures import tell

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.parity import compare
from lace.engine.sampling import SamplingParams
from lace.tasks.task import get_task

THREADS = (1, 2, 4, 8)
BUDGETS = (20, 50, 100)


@dataclass(frozen=True)
class Question:
    """A request that clients send, and what it means to the offline engine."""

    prompt: str
    params: SamplingParams

    def body(self, model: str) -> dict[str, Any]:
        p = self.params
        sampling = {"max_tokens": p.max_tokens, "temperature": p.temperature, "top_p": p.top_p, "seed": p.seed}
        told = {"n": p.threads, "lace": {"threads": p.threads}, "logprobs": 0, "stream": True}
        return {"model": model, "prompt": self.prompt, **sampling, **told}


@dataclass
class Load:
    """What all clients saw."""

    answers: list[tuple[Question, list[list[str]], list[str]]] = field(default_factory=list)
    """Question, texts of the tokens of each thread, and how each thread ended."""
    left: int = 0
    failures: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    per_step: list[float] = field(default_factory=list)
    """Seconds from the first piece of an answer to its last, over its steps."""


def questions(count: int, seed: int = 0) -> list[Question]:
    """Puzzles of both tasks, mixed in threads and budget."""
    puzzles = [p for task in ("countdown", "chain-sum") for p in get_task(task).puzzles(count // 2, seed, "validation")]
    chosen = []
    for n, puzzle in enumerate(puzzles):
        threads, budget = THREADS[n % len(THREADS)], BUDGETS[n % len(BUDGETS)]
        params = SamplingParams(threads=threads, max_tokens=budget, temperature=0.8, top_p=0.9, seed=n)
        chosen.append(Question(puzzle.prompt, params))
    return chosen


async def ask(http: httpx2.AsyncClient, model: str, question: Question, leave_after: int | None, load: Load) -> None:
    """One request; the client leaves after so many pieces, if that is not None."""
    tokens: dict[int, list[str]] = defaultdict(list)
    began, first, pieces = time.perf_counter(), 0.0, 0
    report: dict[str, Any] = {}
    async with http.stream("POST", "/v1/completions", json=question.body(model)) as response:
        if response.status_code != 200:
            load.failures.append(f"{response.status_code} {(await response.aread()).decode()}")
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                load.failures.append(chunk["error"]["message"])
                return
            report = chunk.get("lace", report)
            for choice in chunk["choices"]:
                first = first or time.perf_counter()
                pieces += 1
                tokens[choice["index"]] += choice["logprobs"]["tokens"] if choice["logprobs"] else []
            if leave_after is not None and pieces >= leave_after:
                load.left += 1
                return
    load.first_token.append(first - began)
    load.per_step.append((time.perf_counter() - first) / report["steps"])
    ends = [thread["finish_reason"] for thread in report["threads"]]
    load.answers.append((question, [tokens[n] for n in range(question.params.threads)], ends))


async def run_clients(
    url: str, model: str, asked: list[Question], *, clients: int, leaving: float, seconds: float | None
) -> Load:
    """All clients at once, each with one request after the other; with `seconds` None each sends one."""
    load = Load()
    limits = httpx2.Limits(max_connections=None)

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        rng = random.Random(number)
        ends = time.perf_counter() + (seconds or 0)
        while True:
            leave_after = rng.randint(1, 40) if rng.random() < leaving else None
            await ask(http, model, rng.choice(asked), leave_after, load)
            if time.perf_counter() >= ends:
                return

    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(clients)))
    return load


def token_ids(engine: Engine, texts: list[list[str]], ends: list[str]) -> list[list[int]]:
    """Tokens by their texts, which differ from token to token in the shipped models; with their end token."""
    known = {str(engine.tokenizer.decode([token])): token for token in range(len(engine.tokenizer))}
    end = next(iter(engine.end_ids))
    ids = [[known[text] for text in thread] for thread in texts]
    return [[*thread, end] if how == "eos" else thread for thread, how in zip(ids, ends, strict=True)]


def check_answers(engine: Engine, load: Load) -> dict[str, int]:
    """Compares every finished answer with the offline engine's."""
    counts = {"same": 0, "parted by rounding": 0, "different": 0}
    asked = list(dict.fromkeys(question for question, _, _ in load.answers))
    offline = dict(zip(asked, engine.generate([q.prompt for q in asked], [q.params for q in asked]), strict=True))
    for question, texts, ends in load.answers:
        expected = [thread.token_ids for thread in offline[question].threads]
        parting = compare(engine, question.prompt, question.params, expected, token_ids(engine, texts, ends))
        kind = "same" if parting is None else "parted by rounding" if parting.by_rounding else "different"
        counts[kind] += 1
    return counts


def gauges(url: str) -> dict[str, float]:
    """What the server says that it holds."""
    text = httpx2.get(f"{url}/metrics").text
    names = ("lace_lattices_running", "lace_lattices_waiting", "lace_threads_running", "lace_cache_tokens")
    return {name: float(re.findall(rf"^{name} (\S+)$", text, re.M)[0]) for name in names}


def _memory(pid: int) -> float:
    """Resident megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _watch_memory(pid: int, samples: list[float]) -> None:
    while True:
        samples.append(_memory(pid))
        await asyncio.sleep(1)


async def _measure(url: str, pid: int, options: argparse.Namespace) -> tuple[Load, list[float]]:
    samples: list[float] = []
    watcher = asyncio.create_task(_watch_memory(pid, samples))
    load = await run_clients(
        url, options.model, questions(60), clients=options.clients, leaving=options.leaving, seconds=options.seconds
    )
    watcher.cancel()
    return load, samples


def _offline_step(engine: Engine) -> float:
    """Seconds per step of one lattice of four threads, alone."""
    question = questions(60)[2]
    results = [engine.generate(question.prompt, question.params)[0] for _ in range(6)]
    return float(np.median([result.seconds / result.steps for result in results[1:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="puzzles")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--leaving", type=float, default=0.2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    concurrent = max(8, options.clients // 3)
    command = [sys.executable, "-m", "lace.cli.main", "serve", "--model", options.model, "--port", "0"]
    command += ["--max-concurrent", str(concurrent), "--cache-tokens", "200000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = server.stderr.readline().split()[-1].removesuffix("/v1")
        ready = False
        while not ready:
            time.sleep(0.5)
            try:
                ready = httpx2.get(f"{url}/health").status_code == 200
            except httpx2.ConnectError:
                continue
        load, samples = asyncio.run(_measure(url, server.pid, options))
        time.sleep(1)
        held = gauges(url)
        server.terminate()
    engine = load_engine(options.model)
    counts = check_answers(engine, load)
    quarter = max(1, len(samples) // 4)
    report = {
        "model": options.model,
        "clients": options.clients,
        "seconds": options.seconds,
        "max_concurrent": concurrent,
        "finished": len(load.answers),
        "left midway": load.left,
        "failures": load.failures,
        **counts,
        "held at the end": held,
        "memory_mb": {"second quarter": max(samples[quarter : 2 * quarter]), "last quarter": max(samples[-quarter:])},
        "first_token_seconds": dict(zip(("p50", "p99"), np.percentile(load.first_token, (50, 99)), strict=True)),
        "step_seconds": dict(zip(("p50", "p99"), np.percentile(load.per_step, (50, 99)), strict=True)),
        "offline_step_seconds": _offline_step(engine),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
