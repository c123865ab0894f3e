"""Many clients at once, some of whom leave: answers as if alone, and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest
from serve_load import check_answers, gauges, questions, run_clients

from lace.engine.engine import Engine
from running_server import Running, serve


def check(server: Running, engine: Engine, *, clients: int, pool: int, seconds: float | None) -> None:
    load = asyncio.run(
        run_clients(server.url, "puzzles", questions(pool), clients=clients, leaving=0.2, seconds=seconds)
    )
    server.wait_until_idle()
    assert not any(gauges(server.url).values())
    assert load.failures == []
    assert load.left > 0
    assert len(load.answers) >= clients // 2
    counts = check_answers(engine, load)
    assert counts["different"] == 0
    assert counts["same"] > 0.9 * len(load.answers)


def test_twenty_clients(puzzles: Engine) -> None:
    with serve(lambda: puzzles, model="puzzles", shipped=True, max_concurrent=8) as server:
        check(server, puzzles, clients=20, pool=12, seconds=None)


@pytest.mark.slow
def test_two_hundred_clients_for_five_minutes(puzzles: Engine) -> None:
    with serve(lambda: puzzles, model="puzzles", shipped=True, max_concurrent=64, cache_tokens=200_000) as server:
        check(server, puzzles, clients=200, pool=60, seconds=300)
