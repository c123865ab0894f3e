"""Exercises beside whole searches: bare arithmetic, and the bare choice of ideas, where most of the learning is."""

from __future__ import annotations

from random import Random
from typing import Any

from lace.data.countdown_teacher import CountdownTeacher, Worker
from lace.tasks.countdown import MAX_NUMBER, MAX_VALUE, OPERATORS, TRIPLE_IDEAS, Equation, combine

EQUATIONS = 10
"""Equations in one row of arithmetic."""
RIGHT = 0.4
"""Share of them that reach the target. To compare two numbers is learned within minutes when it is asked this often,
and not in an hour from searches, where few values are right."""
NEAR = 0.3
"""Share of them that miss it by 1 to 3, the misses that are taken for the target longest."""
DEAD_ENDS = 0.2
"""Share of the others without a value, among those drawn, that are kept."""
IDEAS = 32
"""Ideas that the threads of one lattice name together, at most; each names 6 at most."""
NOISE = (2, 4, 11)
"""Longest noise between a name and its verdict, one of these in each lattice; a search has 6 to 11 tokens there."""
FOUND = 0.6
"""Share of the lattices that name ideas in which one thread is given a solution."""


def equations(rng: Random, target: int) -> list[str]:
    """A row of true equations as words, each with its verdict on the target."""
    words: list[str] = []
    while words.count("=") < EQUATIONS:
        kind = rng.random()
        miss = 0 if kind < RIGHT else rng.choice((-3, -2, -1, 1, 2, 3))
        aimed = kind < RIGHT + NEAR and 1 <= target + miss <= MAX_VALUE
        equation = _equation_of(rng, target + miss) if aimed else _equation(rng)
        if equation.value is not None or rng.random() < DEAD_ENDS:
            words += [*str(equation).split(), "yes" if equation.value == target else "no", ","]
    return words


def _equation(rng: Random) -> Equation:
    """Any equation; half of the sums and differences have a small operand, as most steps of a search have."""
    operator = rng.choice(OPERATORS)
    x = rng.randint(1, MAX_NUMBER if operator in "*/" or rng.random() < 0.5 else MAX_VALUE)
    y = rng.randint(1, MAX_NUMBER if operator == "*" and rng.random() < 0.5 else MAX_VALUE)
    if operator == "/" and y > x and rng.random() < 0.5:
        y -= y % x
    return Equation(max(x, y), operator, min(x, y), combine(operator, x, y))


def _equation_of(rng: Random, value: int) -> Equation:
    """An equation that has this value."""
    while True:
        operator = rng.choice(OPERATORS)
        if operator == "+":
            x = rng.randint(1, value)
            y = value - x
        elif operator == "-":
            y = rng.randint(1, MAX_VALUE)
            x = value + y
        elif operator == "*":
            x = rng.choice([n for n in range(1, value + 1) if value % n == 0])
            y = value // x
        else:
            y = rng.randint(1, MAX_NUMBER)
            x = value * y
        if y and max(x, y) <= MAX_VALUE and combine(operator, x, y) == value:
            return Equation(max(x, y), operator, min(x, y), value)


class IdeaDrill(CountdownTeacher):
    """Workers that name ideas, each avoiding what it has seen, without carrying them out: four tokens and some noise in
    the place of fifteen for a choice. In some lattices one of the ideas is said to be right, whatever it is, and the
    others take it over. What stands between a name and its verdict is noise, and not to be learned.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attempts = min(6, IDEAS // len(self.workers))
        found = self.rng.random() < FOUND
        self.finder = self.rng.choice(self.workers) if found else None
        self.found_at = self.rng.randint(1, self.attempts)
        self.longest_noise = self.rng.choice(NOISE)

    def _decide(self, worker: Worker) -> None:
        noise = [str(self.rng.randint(1, MAX_VALUE)) for _ in range(self.rng.randint(0, self.longest_noise))]
        solver = self._solver(worker)
        attempts = len(worker.choices) // self.width
        if worker.solved is None and worker.names and worker is self.finder and attempts == self.found_at:
            worker.rest = [*worker.names, *noise, "yes", *worker.names]
            worker.solved = worker.step + len(worker.rest) - 1
            worker.rest.append(str(worker.label))
        elif worker.solved is not None or worker.following:
            worker.rest, worker.closing = ["<eos>"], "tagged"
        elif solver is not None:
            assert solver.solved is not None
            worker.following = True
            worker.rest = [*solver.names, "see", *noise, "yes", str(solver.label)]
            for step in (0, 1, len(worker.rest) - 1):
                self._refer(worker, solver, solver.solved, worker.step + step)
        elif worker.names:
            worker.rest, worker.names = [*worker.names, *noise, "no", ","], ()
        elif attempts == self.attempts:
            worker.rest, worker.closing = ["<eos>"], "tagged"
        else:
            self._begin(worker)

    @staticmethod
    def learned(words: list[str], step: int) -> bool:
        """Whether a token other than a choice is worth learning: what is said again, and what is taken over."""
        before, earlier = words[step - 1], words[step - 2]
        again = words[step] == before and before in TRIPLE_IDEAS
        taken = "see" in words[step : step + 2]
        return again or taken or before == "yes" or (earlier == "yes" and words[step].isdigit())
