"""An endless, reproducible stream of Countdown lattices and arithmetic drills as a map-style data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lace.data.assemble import AssembledLattice, assemble
from lace.data.countdown_drills import IdeaDrill, equations
from lace.data.countdown_teacher import CountdownTeacher
from lace.data.record import LatticeRecord, ThreadRecord
from lace.data.vocabulary import TAGS
from lace.tasks.countdown import generate
from lace.tasks.task import Split

DRILL_LUCK = 0.3
"""In searches that are drills, how often a worker picks a right attempt on purpose."""


@dataclass(frozen=True)
class CountdownMixture:
    """What the stream is made of."""

    coordinated: bool
    """Whether the threads of a lattice read each other."""
    visibility: str = "strict"
    min_threads: int = 2
    max_threads: int = 8
    max_label: int = 32
    """Labels (and thread ids) are drawn without replacement from 1..max_label."""
    four_numbers: float = 0.25
    """Share of batches with puzzles of four numbers."""
    equations: float = 0.0
    """Share of batches with bare equations, in which only results and verdicts are learned."""
    lucky: float = 0.0
    """Share of batches with isolated searches that find many solutions, in which everything but the choice of ideas is
    learned. A solution is rare in an honest search, so that closing with one takes long to learn from these alone."""
    idea_drills: float = 0.0
    """Share of batches with drills in which ideas are only named, by threads that read each other if `coordinated`."""
    group: int = 8
    """Neighbours of one kind and number of threads (the batch size), so that little of a batch is padding."""
    split: Split = "train"
    seed: int = 0


class CountdownLattices(Dataset[AssembledLattice]):
    """Item i depends on the mixture and i alone, so a resumed run sees what an unbroken one would have seen."""

    def __init__(self, mixture: CountdownMixture, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        self.mixture, self.tokenizer, self.size = mixture, tokenizer, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> AssembledLattice:
        if not 0 <= index < self.size:
            raise IndexError(index)
        mix = self.mixture
        of_group = Random(f"{mix.seed}/group/{index // mix.group}")
        threads = of_group.randint(mix.min_threads, mix.max_threads)
        kind, four = of_group.random(), of_group.random() < mix.four_numbers
        rng = Random(f"{mix.seed}/item/{index}")
        labels = rng.sample(range(1, mix.max_label + 1), threads)
        if kind < mix.equations:
            return self._equations(rng, labels)
        lucky = kind < mix.equations + mix.lucky
        idea_drill = not lucky and kind < mix.equations + mix.lucky + mix.idea_drills
        teacher = (IdeaDrill if idea_drill else CountdownTeacher)(
            generate(rng, mix.split, 4 if four and not idea_drill else 3),
            labels,
            rng,
            coordinated=mix.coordinated and not lucky,
            visibility=mix.visibility,
            luck=DRILL_LUCK if lucky else 0.0,
        )
        record = teacher.write()
        lattice = assemble(record, self.tokenizer, mix.visibility)
        for thread, learned in zip(record.threads, lattice.learned, strict=True):
            for step, token in enumerate(thread.tokens):
                if lucky:
                    learned[step] &= step not in thread.choices and token not in TAGS
                elif idea_drill:
                    learned[step] &= step in thread.choices or IdeaDrill.learned(thread.tokens, step)
        return replace(lattice, blind=lucky)

    def _equations(self, rng: Random, labels: list[int]) -> AssembledLattice:
        puzzle = generate(rng, self.mixture.split)
        threads, learned = [], []
        for label in labels:
            opening = ["Thread", str(label), ":"]
            words = [*opening, *equations(rng, puzzle.target)]
            threads.append(ThreadRecord(label, words, len(opening)))
            learned.append([n > 0 and (words[n - 1] == "=" or word in ("yes", "no")) for n, word in enumerate(words)])
        lattice = assemble(LatticeRecord(puzzle.prompt, threads), self.tokenizer, self.mixture.visibility)
        return replace(lattice, learned=learned, blind=True)
