"""A symbolic teacher for chained sums: threads that slip as the model does, and correct themselves and one another.

All threads take the same blocks of terms in the same steps, each in an order of its own, so that the slip of one is
rarely that of another. Behind a block every thread says its value a second time, which is what makes it readable for
the others (the lattice reads what a layer's attention has fetched), looks at them (`see`), and writes a verdict and
the right value: `fix` if its own was wrong, `keep` if another thread was seen to have a wrong one, else `ok`. The
right value is always what is learned: a model weighs what it computes itself against what the others have written.
What is not learned is the slip.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lace.data.record import LatticeRecord, Reference, ThreadRecord, opening_words
from lace.tasks.chain_sum import MAX_TERM, MAX_VALUE, MIN_TERM, Puzzle, in_range

WRONG_VOTES = 0.3
"""Share of the values in drills of verdicts that are wrong."""

Adder = Callable[[Random, int, int], int]
"""What a thread writes behind `x + y =` (y may be negative), right or wrong."""


def exact(rng: Random, x: int, y: int) -> int:
    """The adder that makes no mistakes."""
    return x + y


def write_chain_sum(
    puzzle: Puzzle, labels: list[int], rng: Random, *, coordinated: bool, adder: Adder = exact, stray: float = 0.0
) -> tuple[LatticeRecord, list[set[int]]]:
    """Writes the lattice of one puzzle.

    A verdict stands three steps behind the value that it judges. Two would do in `strict` mode, but then the lattice
    reads a value just written; a step more, and attention has fetched it (docs/log.md).

    Args:
        puzzle: what to add up.
        labels: one distinct label per thread.
        rng: decides every free choice.
        coordinated: whether the threads read each other; else they judge their own value alone, and none is best.
        adder: makes the mistakes.
        stray: how often a thread leaves a block with a wrong value in spite of all, and calculates on with it. Threads
            that read the others can be brought back at the next verdict; those that do not, cannot.

    Returns:
        The record, and for each thread the steps of its slips.
    """
    tokens, hands = [opening_words(label) for label in labels], [puzzle.start] * len(labels)
    references: list[list[Reference]] = [[] for _ in labels]
    slips: list[set[int]] = [set() for _ in labels]
    right = puzzle.start
    for number, block in enumerate(puzzle.blocks):
        right += sum(block)
        later_blocks = puzzle.blocks[number + 1 :]
        for n, words in enumerate(tokens):
            order = rng.sample(block, len(block))
            for place, term in enumerate(order):
                x, value = hands[n], adder(rng, hands[n], term)
                if not in_range(value, order[place + 1 :]):
                    value = x + term  # that slip would lead out of the numbers that there are words for
                words += [str(x), "-" if term < 0 else "+", str(abs(term)), "=", str(value), ","]
                if value != x + term:
                    slips[n].add(len(words) - 2)
                hands[n] = value
            words[-1] = str(hands[n])  # said twice, or the others could not read it
        written, leaving = len(tokens[0]) - 2, list(hands)
        agreed = all(hand == right for hand in hands) or not coordinated
        for n, words in enumerate(tokens):
            words += ["see"] * coordinated
            verdict, stated = _verdict(hands[n], right, agreed), right
            if later_blocks and rng.random() < stray:
                stated = _astray(rng, hands[n], right, later_blocks[0])
            if stated != right:
                verdict = "keep" if stated == hands[n] else "fix"
                slips[n] |= {len(words), len(words) + 1}
            words += [verdict, str(stated), ","]
            leaving[n] = stated
            if coordinated:
                references[n] += _on_others(n, len(labels), written)
        hands = leaving
    for n, words in enumerate(tokens):
        best = coordinated and labels[n] == min(labels)
        words += ["answer:", str(puzzle.answer), "[[best]]" if best else "[[success]]", "<eos>"]
    return _record(puzzle.prompt, labels, tokens, references), slips


def write_votes(labels: list[int], rng: Random, rounds: int = 8) -> tuple[LatticeRecord, list[set[int]]]:
    """A drill of the verdicts alone: values out of nothing, of which most threads are given the right one. Whoever is
    not can only know it from the others, so that reading them is learned within minutes.

    Returns:
        The record, and for each thread the steps of the values given, which are not learned.
    """
    tokens = [opening_words(label) for label in labels]
    references: list[list[Reference]] = [[] for _ in labels]
    given: list[set[int]] = [set() for _ in labels]
    for _ in range(rounds):
        right, written = rng.randint(1, MAX_VALUE), len(tokens[0])
        values = [_miss(rng, right) if rng.random() < WRONG_VOTES else right for _ in labels]
        if 2 * values.count(right) <= len(labels):
            values = [right] * len(labels)  # nobody could tell
        agreed = all(value == right for value in values)
        for n, (words, value) in enumerate(zip(tokens, values, strict=True)):
            given[n].add(written)
            words += [str(value), str(value), "see", _verdict(value, right, agreed), str(right), ","]
            references[n] += _on_others(n, len(labels), written)
    return _record("Compute", labels, tokens, references), given


def _verdict(own: int, right: int, agreed: bool) -> str:
    return "fix" if own != right else "ok" if agreed else "keep"


def _on_others(thread: int, threads: int, written: int) -> list[Reference]:
    """Verdict and value behind it rest on what all others wrote at step `written`."""
    others = [other for other in range(threads) if other != thread]
    return [Reference(written + later, other, written) for later in (3, 4) for other in others]


def _record(
    prompt: str, labels: list[int], tokens: list[list[str]], references: list[list[Reference]]
) -> LatticeRecord:
    threads = [
        ThreadRecord(label, words, len(opening_words(label)), rests)
        for label, words, rests in zip(labels, tokens, references, strict=True)
    ]
    return LatticeRecord(prompt, threads)


def _astray(rng: Random, own: int, right: int, block: tuple[int, ...]) -> int:
    """The wrong value that a thread goes on with: its own, if that was wrong, else one near; the right one, if the
    next block would lead the wrong one out of the numbers that there are words for."""
    value = own if own != right else _miss(rng, right)
    return value if in_range(value, block) else right


def _miss(rng: Random, value: int) -> int:
    """Another value, near it."""
    while True:
        other = value + rng.choice((-20, -10, -3, -2, -1, 1, 2, 3, 10, 20))
        if 1 <= other <= MAX_VALUE:
            return other


def sums(rng: Random, count: int = 12) -> list[str]:
    """A row of true sums as words, of the kind that blocks are made of."""
    words: list[str] = []
    for _ in range(count):
        x, term = rng.randint(1, MAX_VALUE), rng.randint(MIN_TERM, MAX_TERM) * rng.choice((-1, 1))
        if 1 <= x + term <= MAX_VALUE:
            words += [str(x), "-" if term < 0 else "+", str(abs(term)), "=", str(x + term), ","]
    return words
