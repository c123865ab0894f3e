"""The mistakes that a model makes in sums, as a table of what it would write, so that data can show the model's own."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from lace.tasks.chain_sum import MAX_TERM, MAX_VALUE

SHAPE = (2, MAX_VALUE + 1, MAX_TERM + 1)
"""Sign (+, -), first number, second number."""


class Mistakes:
    """Draws results of sums from a table.

    Args:
        results: (2, MAX_VALUE + 1, MAX_TERM + 1, K) the K likeliest wrong results of each sum.
        chances: their probabilities, same shape; the rest is the right result's.
        rate: factor on all chances.

    Raises:
        ValueError: if the shapes are not those.
    """

    def __init__(self, results: torch.Tensor, chances: torch.Tensor, rate: float = 1.0) -> None:
        if results.shape[:3] != SHAPE or results.shape != chances.shape:
            raise ValueError(
                f"a table of mistakes has shape {SHAPE} and one more dimension, not {tuple(results.shape)}"
            )
        self.results, self.chances = results.to(torch.int16), chances.to(torch.float16)
        self._results, self._chances = results.tolist(), (rate * chances.float()).tolist()

    def draw(self, rng: Random, x: int, y: int) -> int:
        """What is written behind `x + y =`; `y` may be negative."""
        if 0 <= x <= MAX_VALUE and abs(y) <= MAX_TERM:
            place, point = (int(y < 0), x, abs(y)), rng.random()
            for result, chance in zip(self._at(self._results, place), self._at(self._chances, place), strict=True):
                if point < chance:
                    return int(result)
                point -= chance
        return x + y

    @staticmethod
    def _at(table: list[list[list[list[float]]]], place: tuple[int, int, int]) -> list[float]:
        return table[place[0]][place[1]][place[2]]

    def save(self, path: Path) -> None:
        """Writes the table as safetensors."""
        save_file({"results": self.results.contiguous(), "chances": self.chances.contiguous()}, path)

    @classmethod
    def load(cls, path: str | Path, rate: float = 1.0) -> Mistakes:
        """Reads a table.

        Raises:
            FileNotFoundError: if there is none; says how to make one.
            ValueError: if the file is no table of mistakes.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no table of mistakes at {path}; make one with python -m lace.train.mistakes")
        tensors = load_file(path)
        if set(tensors) != {"results", "chances"}:
            raise ValueError(f"{path} is no table of mistakes: it holds {sorted(tensors)}")
        return cls(tensors["results"], tensors["chances"], rate)
