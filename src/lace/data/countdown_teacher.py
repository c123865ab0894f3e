"""A symbolic teacher for Countdown: N workers that search in lock-step and write down what they do.

Coordinated workers avoid every idea that any thread has tried so far, notice at their next step that somebody has
the solution, say whose it is, and close with it. Blind workers do the same alone. A worker knows only what the
model could know when it predicts the same token: in `strict` mode the token of step t is predicted by the query of
step t-1, which reads the others up to step t-2; in `causal` mode up to t-1 (`lace.data.assemble.LAG`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from lace.data.assemble import LAG
from lace.data.record import LatticeRecord, Reference, ThreadRecord
from lace.tasks.countdown import Attempt, Puzzle, attempts

ATTEMPTS = {3: 4, 4: 6}
"""How many attempts a thread has, by the count of numbers."""
CLOSENESS = 0.3
"""Spread, in units of log(value / target), of the attempts picked after the first step of a four-number puzzle."""

Names = tuple[str, ...]


@dataclass
class _Worker:
    """What one thread has written so far, and when the others can know of it."""

    label: int
    tokens: list[str]
    opening: int
    references: list[Reference] = field(default_factory=list)
    choices: dict[int, dict[str, float]] = field(default_factory=dict)
    """Distribution of each token that names an idea, by step."""
    tried: dict[Names, int] = field(default_factory=dict)
    """Names of each attempt (and of each first step alone) -> step of the token that completed the name."""
    solved: int | None = None
    """Step of the `yes`."""
    answer: list[str] = field(default_factory=list)
    answer_step: int = 0
    """Step of the first token of the answer expression."""
    rest: list[str] = field(default_factory=list)
    """Tokens decided on but not yet written: a segment between two moments of looking around."""
    attempt: Attempt | None = None
    stage: int = 0
    """How far the attempt has got: names[stage // 2] is next if even, its equations if odd."""
    count: int = 0
    closing: Literal["no", "waited", "answer", "tagged"] = "no"

    @property
    def step(self) -> int:
        return len(self.tokens)


class CountdownTeacher:
    """Writes the lattice of one puzzle.

    Args:
        puzzle: three or four numbers.
        labels: one distinct label per thread.
        rng: decides every free choice.
        coordinated: whether the workers read each other.
        visibility: `strict` or `causal`, the mode of the model that is to learn from the record.
        luck: probability that a worker picks a right attempt on purpose; for drills, where choices are not learned.
    """

    def __init__(
        self,
        puzzle: Puzzle,
        labels: list[int],
        rng: Random,
        *,
        coordinated: bool,
        visibility: str = "strict",
        luck: float = 0.0,
    ) -> None:
        self.luck = luck
        self.puzzle, self.rng, self.coordinated = puzzle, rng, coordinated
        self.lag = LAG[visibility]
        self.options = attempts(puzzle.numbers)
        self.workers = []
        for label in labels:
            opening = ["Thread", str(label), ":"]
            self.workers.append(_Worker(label, opening, len(opening)))

    def write(self) -> LatticeRecord:
        """Runs the search to its end, one token of every unfinished thread a step."""
        while running := [w for w in self.workers if w.closing != "tagged" or w.rest]:
            for worker in running:
                if not worker.rest:
                    self._decide(worker)
            for worker in running:  # only now: tokens of one step are written at the same time
                worker.tokens.append(worker.rest.pop(0))
        return LatticeRecord(
            self.puzzle.prompt,
            [ThreadRecord(w.label, w.tokens, w.opening, w.references, w.choices) for w in self.workers],
        )

    def _visible(self, worker: _Worker, source_step: int | None) -> bool:
        """Whether what another thread wrote at `source_step` can decide the worker's next token."""
        return self.coordinated and source_step is not None and source_step <= worker.step - self.lag

    def _solver(self, worker: _Worker) -> _Worker | None:
        """The thread that has the solution as far as the worker knows: the earliest, then the smallest label."""
        known = [w for w in self.workers if w.solved is not None and (w is worker or self._visible(worker, w.solved))]
        return min(known, key=lambda w: (w.solved, w.label), default=None)

    def _taken(self, worker: _Worker) -> dict[Names, list[_Worker]]:
        """Every attempt and first step that the worker knows of, with the threads that named it."""
        taken: dict[Names, list[_Worker]] = {}
        for other in self.workers:
            for names, step in other.tried.items():
                if other is worker or self._visible(worker, step):
                    taken.setdefault(names, []).append(other)
        return taken

    def _refer(self, worker: _Worker, source: _Worker, source_step: int, step: int | None = None) -> None:
        step = worker.step if step is None else step
        worker.references.append(Reference(step, self.workers.index(source), source_step))

    def _decide(self, worker: _Worker) -> None:
        """Chooses the next segment from what the worker knows now."""
        if worker.closing == "answer":
            worker.rest, worker.closing = [self._tag(worker), "<eos>"], "tagged"
            return
        solver = self._solver(worker)
        if worker.solved is not None:  # even if another had it in the same step: one's own is at hand
            assert worker.attempt is not None
            worker.answer = worker.attempt.expression.split()
            worker.answer_step = worker.step + 1
            worker.rest, worker.closing = ["answer:", *worker.answer], "answer"
        elif solver is not None:
            self._take_over(worker, solver)
        elif worker.attempt is None and worker.closing == "waited":
            worker.rest, worker.closing = ["answer:", "none"], "answer"
        elif worker.attempt is None and not self._choose(worker, first=True):
            worker.rest, worker.closing = ["done"], "waited"
        else:
            self._continue(worker)

    def _take_over(self, worker: _Worker, solver: _Worker) -> None:
        assert solver.solved is not None
        assert solver.attempt is not None
        self._refer(worker, solver, solver.solved)
        worker.answer = solver.attempt.expression.split()
        start = worker.step + 3
        for n in range(len(worker.answer)):
            self._refer(worker, solver, solver.solved + 2 + n, start + n)
        worker.rest = ["see", str(solver.label), "answer:", *worker.answer]
        worker.closing = "answer"

    def _tag(self, worker: _Worker) -> str:
        if not self.coordinated:
            return "[[fail]]" if worker.solved is None else "[[success]]"
        solver = self._solver(worker)
        if solver is None:
            return "[[best]]" if worker.label == min(w.label for w in self.workers) else "[[fail]]"
        if solver is worker:
            return "[[best]]"
        assert solver.solved is not None
        self._refer(worker, solver, solver.solved)
        return "[[success]]"

    def _choose(self, worker: _Worker, *, first: bool) -> bool:
        """Picks the attempt to go on with; False if the worker has none left."""
        if first and worker.count == ATTEMPTS[len(self.puzzle.numbers)]:
            return False
        taken = self._taken(worker)
        pool = self.options
        if not first:  # the first step stands; the rest of the attempt is chosen now
            assert worker.attempt is not None
            pool = [a for a in pool if a.names[0] == worker.attempt.names[0]]
        free = [a for a in pool if a.names not in taken] or [a for a in pool if a.names not in worker.tried]
        if not free:
            return False
        weights = self._weights(free, taken, first=first)
        right = [a for a in free if a.value == self.puzzle.target] if self.luck else []
        if right and self.rng.random() < self.luck:
            worker.attempt = self.rng.choice(right)
        else:
            worker.attempt = self.rng.choices(free, weights)[0]
        distribution = worker.choices[worker.step] = {}
        for option, weight in zip(free, weights, strict=True):
            name = option.names[0 if first else -1]
            distribution[name] = distribution.get(name, 0.0) + weight / sum(weights)
        for names, others in taken.items():  # the choice rests on all that it avoids
            for other in others if first or names[0] == worker.attempt.names[0] else ():
                if other is not worker:
                    self._refer(worker, other, other.tried[names])
        if first:
            worker.stage, worker.count = 0, worker.count + 1
        return True

    def _weights(self, free: list[Attempt], taken: dict[Names, list[_Worker]], *, first: bool) -> list[float]:
        """How likely the worker picks each free attempt (up to a factor): any of them for three numbers; for four
        first any of the first steps that were tried least, then what comes close to the target."""
        if len(free[0].names) == 1:
            return [1.0] * len(free)
        if not first:
            return [math.exp(-abs(math.log(a.value / self.puzzle.target)) / CLOSENESS) for a in free]
        load = {a.names[:1]: len(taken.get(a.names[:1], ())) for a in free}
        least = min(load.values())
        size = Counter(a.names[:1] for a in free)
        return [1.0 / size[a.names[:1]] if load[a.names[:1]] == least else 0.0 for a in free]

    def _continue(self, worker: _Worker) -> None:
        """Writes the next part of the attempt: a name, or the equations behind the last name."""
        assert worker.attempt is not None
        part, is_equation = divmod(worker.stage, 2)
        if not is_equation:
            if part:
                self._choose(worker, first=False)
            names = worker.attempt.names[: part + 1]
            worker.rest = [names[-1]]
            worker.tried.setdefault(names, worker.step)
            worker.stage += 1
            return
        steps = worker.attempt.equations[part]
        worker.rest = " , ".join(map(str, steps)).split()
        if part + 1 < len(worker.attempt.names):
            worker.stage += 1
            return
        right = worker.attempt.value == self.puzzle.target
        worker.rest.append("yes" if right else "no")
        if right:
            worker.solved = worker.step + len(worker.rest) - 1
        else:
            worker.attempt = None
