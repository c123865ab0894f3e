"""Which model a verb uses, and loading it without the library's chatter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lace.cli.defaults import EXAMPLES, SHIPPED_INDEPENDENT, SHIPPED_LACE

if TYPE_CHECKING:
    from lace.engine.engine import Engine
    from lace.tasks.task import Puzzle

ROWS_ON_GPU = 2048
"""Threads that decode together there: of a small model, a step of many costs about as much as one of few."""


def independent_model(model: str) -> str:
    """The model of the strategy `independent`: for the shipped one its twin, trained as long on isolated traces; for
    any other the model itself, with the lattice off."""
    return SHIPPED_INDEPENDENT if model == SHIPPED_LACE else model


def is_shipped(model: str) -> bool:
    """Whether the model is one of the embedded ones, which know their tasks and nothing else."""
    return model in (SHIPPED_LACE, SHIPPED_INDEPENDENT)


def shipped_puzzle(prompt: str) -> tuple[str, Puzzle]:
    """The task and the puzzle that a prompt asks of a shipped model.

    Raises:
        ValueError: one line, for another question, or a puzzle that is beyond them.
    """
    from lace.tasks.task import find_task, get_task

    try:
        task, puzzle = find_task(prompt)
    except ValueError:  # its examples are of any size
        raise ValueError(
            f"the shipped model knows its tasks alone, not {prompt.strip()[:80]!r}; ask for example {EXAMPLES}"
        ) from None
    get_task(task).check_range(puzzle)
    return task, puzzle


def load_engine(model: str) -> Engine:
    """Loads a model, onto the GPU if there is one, and puts an engine around it.

    Raises:
        ValueError: if it has no tokenizer, or cannot be loaded.
        FileNotFoundError: if there is no such model.
    """
    import torch
    from transformers.utils import logging

    from lace.engine.engine import Engine
    from lace.lattice.checkpoint import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    loaded = load(model, device="cuda" if on_gpu else "cpu")
    if loaded.tokenizer is None:
        raise ValueError(f"{model} has no tokenizer; save one beside the model")
    return Engine(loaded.model, loaded.tokenizer, max_rows=ROWS_ON_GPU if on_gpu else 512)
