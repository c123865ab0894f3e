"""What a model writes as results of sums, right and wrong, as a table, so that data can show the model's own."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from lace.tasks.chain_sum import MAX_TERM, MAX_VALUE

SHAPE = (2, MAX_VALUE + 1, MAX_TERM + 1)
"""Sign (+, -), first number, second number."""
TEMPERATURE = 0.1
"""At which results are drawn: that of use (`lace.cli.defaults`), so that slips come as often as they will."""


class Mistakes:
    """Draws results of sums from a table.

    Args:
        results: (2, MAX_VALUE + 1, MAX_TERM + 1, K) the K likeliest wrong results of each sum.
        chances: their probabilities at temperature 1, same shape; the rest is the right result's.

    Raises:
        ValueError: if the shapes are not those.
    """

    def __init__(self, results: torch.Tensor, chances: torch.Tensor) -> None:
        if results.shape[:3] != SHAPE or results.shape != chances.shape:
            raise ValueError(
                f"a table of mistakes has shape {SHAPE} and one more dimension, not {tuple(results.shape)}"
            )
        self.results, self.chances = results.to(torch.int16), chances.to(torch.float16)
        self._results, self._chances = results.tolist(), self.chances.float().tolist()

    def draw(self, rng: Random, x: int, y: int) -> tuple[int, dict[str, float]]:
        """What is written behind `x + y =`, drawn at `TEMPERATURE`, and the probabilities at temperature 1 of all that
        the model might have written; `y` may be negative."""
        right = x + y
        if not (0 <= x <= MAX_VALUE and abs(y) <= MAX_TERM):
            return right, {}
        place = (int(y < 0), x, abs(y))
        wrong, chances = self._at(self._results, place), self._at(self._chances, place)
        probabilities = {str(int(value)): chance for value, chance in zip(wrong, chances, strict=True) if chance > 0}
        probabilities[str(right)] = max(0.0, 1 - sum(probabilities.values()))
        weights = [chance ** (1 / TEMPERATURE) for chance in probabilities.values()]
        return int(rng.choices(list(probabilities), weights)[0]), probabilities

    @staticmethod
    def _at(table: list[list[list[list[float]]]], place: tuple[int, int, int]) -> list[float]:
        return table[place[0]][place[1]][place[2]]

    def save(self, path: Path) -> None:
        """Writes the table as safetensors."""
        save_file({"results": self.results.contiguous(), "chances": self.chances.contiguous()}, path)

    @classmethod
    def load(cls, path: str | Path) -> Mistakes:
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
        return cls(tensors["results"], tensors["chances"])
