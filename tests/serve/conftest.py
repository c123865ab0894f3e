"""Servers and engines that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from running_server import Running, serve
from tiny_engine import new_model


@pytest.fixture(scope="session")
def puzzles() -> Engine:
    return load_engine("puzzles")


@pytest.fixture(scope="module")
def tiny(tokenizer: PreTrainedTokenizerFast) -> Engine:
    """Random weights; threads write until their budget ends them."""
    engine = Engine(new_model(tokenizer), tokenizer)
    engine.end_ids = frozenset()
    engine.max_positions = 4096
    return engine


@pytest.fixture(scope="module")
def shipped_server(puzzles: Engine) -> Iterator[Running]:
    """The embedded model, for all tests of a file."""
    with serve(lambda: puzzles, model="puzzles", shipped=True, threads=4) as running:
        yield running
