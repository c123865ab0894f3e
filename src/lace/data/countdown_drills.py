"""Exercises beside whole searches: bare arithmetic, and the bare choice of ideas, where most of the learning is."""

from __future__ import annotations

from random import Random
from typing import Any

from lace.data.countdown_teacher import CountdownTeacher, Worker
from lace.tasks.countdown import MAX_NUMBER, MAX_VALUE, OPERATORS, Equation, combine

EQUATIONS = 12
"""Equations in one row of arithmetic."""
DEAD_ENDS = 0.25
"""Share of the equations without a value, among those drawn, that are kept."""
IDEAS = 28
"""Ideas that the threads of one lattice name together, at most; each names 6 at most."""


def equations(rng: Random) -> list[str]:
    """A row of true equations as words: half with one small operand, as most steps of a search have."""
    words: list[str] = []
    while words.count("=") < EQUATIONS:
        operator = rng.choice(OPERATORS)
        small = rng.randint(1, MAX_NUMBER if operator in "*/" or rng.random() < 0.5 else MAX_VALUE)
        large = rng.randint(1, MAX_NUMBER if operator == "*" and rng.random() < 0.5 else MAX_VALUE)
        if operator == "/" and rng.random() < 0.5:
            large -= large % small
        large, small = max(large, small), min(large, small)
        value = combine(operator, large, small)
        if small and (value is not None or rng.random() < DEAD_ENDS):
            words += [*str(Equation(large, operator, small, value)).split(), ","]
    return words


class IdeaDrill(CountdownTeacher):
    """Workers that name ideas, each avoiding what it has seen, without carrying them out: four tokens and a few others
    in the place of fifteen for a choice. What stands between a name and its verdict is noise, and not to be learned.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attempts = min(6, IDEAS // len(self.workers))

    def _decide(self, worker: Worker) -> None:
        if worker.names:
            noise = [str(self.rng.randint(1, MAX_VALUE)) for _ in range(self.rng.randint(0, 3))]
            worker.rest, worker.names = [*noise, "no", *worker.names, ","], ()
        elif len(worker.choices) == self.attempts * self.width:
            worker.rest, worker.closing = ["<eos>"], "tagged"
        else:
            self._begin(worker)
