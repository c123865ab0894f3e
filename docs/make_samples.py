"""Writes the sample lattices of docs/data.md: what configs/data/reasoning-gym.toml makes of its first questions.

    PYTHONPATH=tests:benchmarks python docs/make_samples.py

The tokenizer alone is another one, made here with a token for each word, so that nothing has to be fetched; what
`lace data show` prints does not depend on it.
"""

from __future__ import annotations

import io
import tomllib
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from make_tables import placed
from rich.console import Console
from student import trained_tokenizer, write_bytes_tokenizer
from transformers import AutoTokenizer

from lace.cli.data_view import print_item
from lace.data.pipeline.config import DataConfig, validate
from lace.data.pipeline.find import find_item
from lace.data.pipeline.item import Item
from lace.data.pipeline.run import run_pipeline
from teachers.puzzles import puzzle_teacher
from teachers.server import Server

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data.md"
CONFIG = ROOT / "configs" / "data" / "reasoning-gym.toml"
QUESTIONS = 8
"""Of each task; those of a task are the same however many are asked for."""
SHOWN = ("chain_sum-plain-0-7", "knights_knaves-4507e5-0-0")
WIDTH = 112
VOCABULARY = 100_000
"""More than there are words, so that each is one token."""
ABOUT_WRITTEN = (
    "The first of them as a model is trained on it: in each step every thread writes one token (a word, here), and one "
    "that has\nto wait for what it goes on to speak of writes dots."
)
BEGIN, END = "<!-- samples -->\n", "<!-- samples end -->\n"


def samples(folder: Path) -> str:
    """The part of the page between its marks, made in an empty folder."""
    bytes_tokenizer, words = folder / "bytes", folder / "words"
    write_bytes_tokenizer(bytes_tokenizer)
    with Server(puzzle_teacher()) as server, redirect_stderr(io.StringIO()):
        run_pipeline(_config(server.url, folder / "run", bytes_tokenizer))
        trained_tokenizer(folder / "run", VOCABULARY).save_pretrained(words)
        run_pipeline(_config(server.url, folder / "run", words))
    items = [_item(folder / "run", name) for name in SHOWN]
    shown = "\n".join(map(_shown, items))
    return f"```\n{shown}```\n\n{ABOUT_WRITTEN}\n\n```\n{_written(items[0], words)}\n```\n"


def _config(url: str, out: Path, tokenizer: Path) -> DataConfig:
    values: dict[str, Any] = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    for source in values["questions"]["sources"]:
        source["size"] = QUESTIONS
    values["run"]["out"] = str(out)
    values["teacher"]["base_url"] = url
    # A byte is a token at first.
    values["student"] |= {"tokenizer": str(tokenizer), "max_waiting": 4000, "max_tokens": 20_000}
    values["steps"], values["notes"] = {"max_tokens": 4000}, {"max_tokens": 400}
    values["lattices"]["balance"] = 0
    return validate(values, str(CONFIG))


def _item(run: Path, name: str) -> Item:
    item, _ = find_item(run, name)
    assert item is not None
    return item


def _shown(item: Item) -> str:
    """What `lace data show` prints."""
    text = io.StringIO()
    print_item(item, Console(width=WIDTH, file=text))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _written(item: Item, words: Path) -> str:
    """Its prompt, and its threads as text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(words)
    assert item.lattice is not None
    ids = [tokenizer.convert_tokens_to_ids(thread.tokens) for thread in item.lattice.threads]
    return "\n\n".join([item.lattice.prompt, *tokenizer.batch_decode(ids, skip_special_tokens=True)])


def render(text: str, made: str) -> str:
    """A page's text with samples in it."""
    return placed(text, BEGIN, END, made)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), samples(Path(temporary))), encoding="utf-8")
