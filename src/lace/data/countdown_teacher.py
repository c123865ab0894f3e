"""A symbolic teacher for Countdown: N workers that search in lock-step and write down what they do.

Coordinated workers avoid every idea that any thread has tried so far, notice at their next step that somebody has
the solution, say whose it is, check it, and close with it. Blind workers do the same alone. A worker knows only what
the model could know when it predicts the same token: in `strict` mode the token of step t is predicted by the query
of step t-1, which reads the others up to step t-2; in `causal` mode up to t-1 (`lace.data.assemble.LAG`).

Every name is written twice in a row, and a `yes` is followed by the names of the idea and the thread's own label. This
is what makes ideas and threads readable for others: the lattice reads what a layer's attention has fetched, and to
predict the name at the name, or the label behind it, it has to fetch just that.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from lace.data.assemble import LAG
from lace.data.record import LatticeRecord, Reference, ThreadRecord, opening_words
from lace.tasks.countdown import PAIR_IDEAS, TRIPLE_IDEAS, Puzzle, attempts, carry_out

LAST_START = {3: 67, 4: 90}
"""Last step at which a thread begins another attempt, by the count of numbers; four attempts or five."""
CLOSENESS = 0.3
"""Spread, in units of log(value / target), of the second ideas for four numbers."""

Names = tuple[str, ...]


@dataclass
class Worker:
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
    """Step at which the name behind the `yes` of its own solution is complete: from then on others can read whose idea
    is right, not only that there is one."""
    done: int | None = None
    """Step of the first `done`."""
    rest: list[str] = field(default_factory=list)
    """Tokens decided on but not yet written: a segment between two moments of looking around."""
    names: Names = ()
    """The attempt that is being written."""
    following: bool = False
    """Whether that attempt is another thread's solution."""
    closing: Literal["no", "answer", "tagged"] = "no"

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
        self.puzzle, self.rng, self.coordinated = puzzle, rng, coordinated
        self.lag = LAG[visibility]
        self.lucky_names: Names = ()
        self.luck = luck
        self.right = [a.names for a in attempts(puzzle.numbers) if a.value == puzzle.target]
        self.width = len(puzzle.numbers) - 2
        self.workers = []
        for label in labels:
            opening = opening_words(label)
            self.workers.append(Worker(label, opening, len(opening)))

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

    def _visible(self, worker: Worker, source_step: int | None) -> bool:
        """Whether what another thread wrote at `source_step` can decide the worker's next token."""
        return self.coordinated and source_step is not None and source_step <= worker.step - self.lag

    def _others(self, worker: Worker) -> list[Worker]:
        return [other for other in self.workers if other is not worker] if self.coordinated else []

    def _solver(self, worker: Worker) -> Worker | None:
        """The thread that has the solution as far as the worker knows: the earliest, then the smallest label."""
        known = [w for w in self.workers if w.solved is not None and (w is worker or self._visible(worker, w.solved))]
        return min(known, key=lambda w: (w.solved, w.label), default=None)

    def _refer(self, worker: Worker, source: Worker, source_step: int, step: int | None = None) -> None:
        if source is not worker:
            step = worker.step if step is None else step
            worker.references.append(Reference(step, self.workers.index(source), source_step))

    def _decide(self, worker: Worker) -> None:
        """Chooses the next segment from what the worker knows now."""
        solver = self._solver(worker)
        if worker.closing == "answer":
            worker.rest, worker.closing = [self._tag(worker, solver), "<eos>"], "tagged"
        elif worker.following or worker.solved is not None:  # even if another had it first: one's own is at hand
            answer = carry_out(self.puzzle.numbers, worker.names).expression
            assert answer is not None
            worker.rest, worker.closing = ["answer:", *answer.split()], "answer"
        elif solver is not None:
            self._follow(worker, solver)
        elif worker.names:
            self._carry_on(worker)
        elif worker.step > LAST_START[len(self.puzzle.numbers)]:
            self._wait(worker)
        else:
            self._begin(worker)

    def _follow(self, worker: Worker, solver: Worker) -> None:
        """Takes over another thread's solution: carries the idea out, and says whose it was."""
        assert solver.solved is not None
        worker.names, worker.following = solver.names, True
        worker.rest = []
        for name, steps in zip(worker.names, carry_out(self.puzzle.numbers, worker.names).equations, strict=True):
            self._refer(worker, solver, solver.solved, worker.step + len(worker.rest))
            worker.rest += [name, *" , ".join(map(str, steps)).split()]
        worker.rest += ["yes", str(solver.label)]
        worker.rest.insert(1, "see")  # after the name: what made the thread look up is what it names
        for step in (worker.step + 1, worker.step + len(worker.rest) - 1):
            self._refer(worker, solver, solver.solved, step)

    def _wait(self, worker: Worker) -> None:
        """Has no time for another attempt; the last words are spoken when no other thread is trying any more."""
        if worker.done is None:
            worker.done = worker.step
        elif all(self._visible(worker, other.done) for other in self._others(worker)):
            for other in self._others(worker):
                assert other.done is not None
                self._refer(worker, other, other.done)
            worker.rest, worker.closing = ["answer:", "none"], "answer"
            return
        worker.rest = ["done"]

    def _tag(self, worker: Worker, solver: Worker | None) -> str:
        if not self.coordinated:
            return "[[fail]]" if worker.solved is None else "[[success]]"
        if solver is None:
            return "[[best]]" if worker.label == min(w.label for w in self.workers) else "[[fail]]"
        if solver is worker:
            return "[[best]]"
        assert solver.solved is not None
        self._refer(worker, solver, solver.solved)
        return "[[success]]"

    def _begin(self, worker: Worker) -> None:
        """Begins an attempt: with any idea that nobody was seen to try, or for four numbers with any of the first
        steps that were seen least. Whether it leads to a dead end, a worker does not foresee."""
        self.lucky_names = self.rng.choice(self.right) if self.rng.random() < self.luck else ()
        names = TRIPLE_IDEAS if self.width == 1 else PAIR_IDEAS
        known = self._known(worker, ())
        least = min(known[name] for name in names)
        free = [name for name in names if known[name] == least]
        if self.width == 1 and least:
            free = [name for name in names if (name,) not in worker.tried]
        self._name(worker, dict.fromkeys(free, 1.0))

    def _carry_on(self, worker: Worker) -> None:
        """Goes on with an attempt: names the rest of it, or writes the name again, its equations and the verdict."""
        if worker.tokens[-1] != worker.names[-1]:  # the first step of four numbers stands
            known = self._known(worker, worker.names)
            free = [name for name in TRIPLE_IDEAS if name not in known] or list(TRIPLE_IDEAS)
            self._name(worker, {name: self._closeness((*worker.names, name)) for name in free})
            return
        attempt = carry_out(self.puzzle.numbers, worker.names)
        worker.rest = [worker.names[-1], *" , ".join(map(str, attempt.equations[-1])).split()]
        if len(worker.names) < self.width and attempt.value is not None:
            return
        if attempt.value == self.puzzle.target:
            worker.rest += ["yes", *worker.names]
            worker.solved = worker.step + len(worker.rest) - 1
            worker.rest.append(str(worker.label))
        else:
            worker.rest += ["no", ","]
            worker.names = ()

    def _closeness(self, names: Names) -> float:
        value = carry_out(self.puzzle.numbers, names).value
        distance = 3 * CLOSENESS if value is None else abs(math.log(value / self.puzzle.target))
        return math.exp(-distance / CLOSENESS)

    def _known(self, worker: Worker, prefix: Names) -> Counter[str]:
        """How often each name behind `prefix` was seen to be tried; the next name rests on all of them."""
        counts: Counter[str] = Counter()
        for other in self.workers:
            for names, step in other.tried.items():
                if names[:-1] == prefix and (other is worker or self._visible(worker, step)):
                    counts[names[-1]] += 1
                    self._refer(worker, other, step)
        return counts

    def _name(self, worker: Worker, weights: dict[str, float]) -> None:
        """Writes the next name of the attempt, drawn with these weights."""
        names, total = list(weights), sum(weights.values())
        name = self.rng.choices(names, list(weights.values()))[0]
        if self.lucky_names:
            name = self.lucky_names[len(worker.names)]
        worker.choices[worker.step] = {name: weight / total for name, weight in weights.items()}
        worker.names += (name,)
        worker.tried.setdefault(worker.names, worker.step)
        worker.rest = [name]
