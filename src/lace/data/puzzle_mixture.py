"""An endless, reproducible stream of lattices over both tasks, and of drills for them, as a map-style data set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lace.data.assemble import AssembledLattice, assemble
from lace.data.chain_sum_teacher import exact, write_chain_sum, write_sums, write_votes
from lace.data.countdown_drills import IdeaDrill, equations
from lace.data.countdown_teacher import CountdownTeacher
from lace.data.mistakes import Mistakes
from lace.data.record import LatticeRecord, ThreadRecord, opening_words
from lace.data.vocabulary import TAGS
from lace.tasks import chain_sum
from lace.tasks.countdown import generate
from lace.tasks.task import Split

DRILL_LUCK = 0.3
"""In searches that are drills, how often a worker picks a right attempt on purpose."""


@dataclass(frozen=True)
class PuzzleMixture:
    """What the stream is made of: shares of batches, of which Countdown searches take the rest.

    Raises:
        ValueError: if the shares do not fit.
    """

    coordinated: bool
    """Whether the threads of a lattice read each other."""
    visibility: str = "strict"
    """How soon: `strict` or `causal`, the mode of the model that is to learn."""
    min_threads: int = 2
    """Of a lattice."""
    max_threads: int = 8
    """Of a lattice; the number is drawn anew for every group."""
    max_label: int = 32
    """Labels (and thread ids) are drawn without replacement from 1..max_label."""
    shuffle_threads: bool = True
    """False: labels are always 1, 2, 3, …; a control."""
    chain_sums: float = 0.0
    """Share of chained sums."""
    sums: float = 0.0
    """Share of rows of bare sums, in which only results are learned."""
    votes: float = 0.0
    """Share of drills in which the threads only compare values, or repeat them if they are not `coordinated`."""
    equations: float = 0.0
    """Share of rows of bare equations of Countdown, in which only results and verdicts are learned."""
    lucky: float = 0.0
    """Share of isolated Countdown searches that find many solutions, in which everything but the choice of ideas is
    learned. A solution is rare in an honest search, so that closing with one takes long to learn from these alone."""
    idea_drills: float = 0.0
    """Share of drills in which ideas are only named, by threads that read each other if `coordinated`."""
    four_numbers: float = 0.0
    """Share of Countdown searches with four numbers instead of three."""
    mistakes: str = ""
    """File of the model's own mistakes in sums (`lace.train.mistakes`). Sums are then written as the model writes them,
    and its own probabilities are learned; empty: sums are right."""
    stray: float = 0.0
    """How often a thread leaves a block of a chained sum with a wrong value, if `coordinated`."""
    group: int = 8
    """Neighbours of one kind and number of threads (the batch size), so that little of a batch is padding."""
    split: Split = "train"
    """The part of the puzzles."""
    seed: int = 0
    """Another seed, another stream."""

    def __post_init__(self) -> None:
        shares = [getattr(self, name) for name in KINDS]
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"the shares {', '.join(KINDS)} must be from 0 to 1 in sum, not {shares}")
        if not 1 <= self.min_threads <= self.max_threads <= self.max_label:
            raise ValueError(
                "min_threads, max_threads and max_label must rise from 1 on, not "
                f"{self.min_threads}, {self.max_threads}, {self.max_label}"
            )


KINDS = ("equations", "lucky", "idea_drills", "chain_sums", "sums", "votes")


class PuzzleLattices(Dataset[AssembledLattice]):
    """Item i depends on the mixture and i alone, so a resumed run sees what an unbroken one would have seen."""

    def __init__(self, mixture: PuzzleMixture, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        self.mixture, self.tokenizer, self.size = mixture, tokenizer, size
        self.adder = Mistakes.load(mixture.mistakes).draw if mixture.mistakes else exact

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> AssembledLattice:
        if not 0 <= index < self.size:
            raise IndexError(index)
        mix = self.mixture
        of_group = Random(f"{mix.seed}/group/{index // mix.group}")
        threads = of_group.randint(mix.min_threads, mix.max_threads)
        point, numbers = of_group.random(), 4 if of_group.random() < mix.four_numbers else 3
        rng = Random(f"{mix.seed}/item/{index}")
        labels = rng.sample(range(1, mix.max_label + 1), threads) if mix.shuffle_threads else [*range(1, threads + 1)]
        for kind in KINDS:
            if point < (share := getattr(mix, kind)):
                return self._make(kind, rng, labels, numbers)
            point -= share
        return self._make("search", rng, labels, numbers)

    def _make(self, kind: str, rng: Random, labels: list[int], numbers: int) -> AssembledLattice:
        if kind == "equations":
            puzzle = generate(rng, self.mixture.split)
            rows = [(label, opening_words(label), equations(rng, puzzle.target)) for label in labels]
            threads = [ThreadRecord(label, [*opening, *row], len(opening)) for label, opening, row in rows]
            return self._drill(puzzle.prompt, threads, {"yes", "no"})
        if kind == "sums":
            threads = [write_sums(label, rng, self.adder) for label in labels]
            return self._drill(chain_sum.generate(rng, self.mixture.split).prompt, threads)
        if kind in ("chain_sums", "votes"):
            return self._chain_sum(kind, rng, labels)
        return self._countdown(kind, rng, labels, numbers)

    def _countdown(self, kind: str, rng: Random, labels: list[int], numbers: int) -> AssembledLattice:
        """A search, honest or lucky, or its choices alone."""
        mix, lucky, drill = self.mixture, kind == "lucky", kind == "idea_drills"
        teacher = (IdeaDrill if drill else CountdownTeacher)(
            generate(rng, mix.split, 3 if drill else numbers),
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
                elif drill:
                    learned[step] &= step in thread.choices or IdeaDrill.learned(thread.tokens, step)
        return replace(lattice, blind=lucky)

    def _chain_sum(self, kind: str, rng: Random, labels: list[int]) -> AssembledLattice:
        """A chained sum, or its verdicts alone; values that are given or astray are not learned."""
        mix = self.mixture
        if kind == "votes":
            record, given = write_votes(labels, rng, coordinated=mix.coordinated)
        else:
            puzzle = chain_sum.generate(rng, mix.split)
            record, given = write_chain_sum(
                puzzle,
                labels,
                rng,
                coordinated=mix.coordinated,
                adder=self.adder,
                stray=mix.stray,
            )
        lattice = assemble(record, self.tokenizer, mix.visibility)
        for learned, steps in zip(lattice.learned, given, strict=True):
            for step in steps:
                learned[step] = False
        return lattice

    def _drill(self, prompt: str, threads: list[ThreadRecord], verdicts: Collection[str] = ()) -> AssembledLattice:
        """Rows of equations, in which results and verdicts are learned."""
        lattice = assemble(LatticeRecord(prompt, threads), self.tokenizer, self.mixture.visibility)
        learned = [
            [n > 0 and (words[n - 1] == "=" or word in verdicts) for n, word in enumerate(words)]
            for words in (thread.tokens for thread in threads)
        ]
        return replace(lattice, learned=learned, blind=True)
