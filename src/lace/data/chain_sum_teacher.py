"""A symbolic teacher for chained sums: threads that add as the model does, and correct themselves and one another.

All threads take the same blocks of terms in the same steps, each on a route of its own, so that the slip of one is
rarely that of another: the thread of the smallest label takes the first route, the next the second. Threads that do
not read each other know their own label alone, and take the route that belongs to it. Behind a block every thread says
its value a second time, which is what makes it readable for the others (the lattice reads what a layer's attention has
fetched), looks at them (`see`), and writes the right value and a verdict: `fix` if its own was wrong, `keep` if another
thread was seen to have a wrong one, else `ok`. The value stands first: with the verdict first, threads learned to write
`keep` whatever they saw, and then had to keep their own (docs/log.md). Threads that do not read each other go on with
their own value.

What a thread writes behind `x + y =` is what the model itself would have written, slips included, and its own
probabilities are what is learned there: whoever learns from these lattices learns to compare, and adds neither better
nor worse than before. What stands behind `see` is the right value: a model weighs what it has computed against what the
others have written.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lace.data.record import LatticeRecord, Reference, ThreadRecord, opening_words
from lace.tasks.chain_sum import MAX_TERM, MAX_VALUE, MIN_TERM, ROUTES, Puzzle, in_range, stays_in_range

WRONG_VOTES = 0.3
"""Share of the values in drills of verdicts that are wrong."""

Adder = Callable[[Random, int, int], tuple[int, dict[str, float]]]
"""What a thread writes behind `x + y =` (y may be negative), right or wrong, and the probability of each token that it
could have written, which is what is then learned; none: what is written is learned."""


def exact(rng: Random, x: int, y: int) -> tuple[int, dict[str, float]]:
    """The adder that makes no mistakes."""
    return x + y, {}


def write_chain_sum(
    puzzle: Puzzle, labels: list[int], rng: Random, *, coordinated: bool, adder: Adder = exact, stray: float = 0.0
) -> tuple[LatticeRecord, list[set[int]]]:
    """Writes the lattice of one puzzle.

    A value that stands is written three steps behind those that it rests on. Two would do in `strict` mode, but then
    the lattice reads a value just written; a step more, and attention has fetched it (docs/log.md).

    Args:
        puzzle: what to add up.
        labels: one distinct label per thread.
        rng: decides every free choice.
        coordinated: whether the threads read each other; else each goes on with its own value, and none is best.
        adder: the model's results, right and wrong.
        stray: how often a thread that reads the others leaves a block with a wrong value in spite of all, and
            calculates on with it until the next verdict.

    Returns:
        The record, and for each thread the steps of its strays, which are not learned.
    """
    threads, routes = _begin(labels, coordinated)
    hands = [puzzle.start] * len(labels)
    strays: list[set[int]] = [set() for _ in labels]
    right = puzzle.start
    for number, block in enumerate(puzzle.blocks):
        right += sum(block)
        later_blocks = puzzle.blocks[number + 1 :]
        for n, thread in enumerate(threads):
            order = [block[at] for at in routes[n] if at < len(block)]
            for place, term in enumerate(order):
                x = hands[n]
                value, probabilities = adder(rng, x, term)
                ahead = [order[place + 1 :], *([] if coordinated else later_blocks)]  # until another value is taken
                if value != x + term and not stays_in_range(value, ahead):
                    value = x + term  # that slip would lead out of the numbers that there are words for
                write_sum(thread, x, term, value, probabilities)
                hands[n] = value
            thread.tokens[-1] = str(hands[n])  # said twice, or the others could not read it
        written = len(threads[0].tokens) - 2
        agreed = all(hand == right for hand in hands)
        for n, thread in enumerate(threads):
            words = thread.tokens
            if not coordinated:
                words += [str(hands[n]), "ok", ","]
                continue
            stated, verdict = right, _verdict(hands[n], right, agreed)
            if later_blocks and rng.random() < stray:
                stated = _astray(rng, hands[n], right, later_blocks[0])
            if stated != right:
                verdict = "keep" if stated == hands[n] else "fix"
                strays[n] |= {len(words) + 1, len(words) + 2}
            words += ["see", str(stated), verdict, ","]
            hands[n] = stated
            thread.references += _on_others(n, len(labels), written, (3, 4))
    for thread, hand in zip(threads, hands, strict=True):
        best = coordinated and thread.label == min(labels)
        thread.tokens += ["answer:", str(hand), "[[best]]" if best else "[[success]]", "<eos>"]
    return LatticeRecord(puzzle.prompt, threads), strays


def write_votes(
    labels: list[int], rng: Random, *, coordinated: bool, rounds: int = 8
) -> tuple[LatticeRecord, list[set[int]]]:
    """A drill of places and verdicts alone: values out of nothing, of which most threads are given the right one.
    Whoever is not can only know it from the others, so that reading them is learned within minutes. Threads that do not
    read each other are given the right values, and say them again.

    Returns:
        The record, and for each thread the steps of the values given, which are not learned.
    """
    threads, _ = _begin(labels, coordinated)
    given: list[set[int]] = [set() for _ in labels]
    for _ in range(rounds):
        right, written = rng.randint(1, MAX_VALUE), len(threads[0].tokens)
        wrong = WRONG_VOTES if coordinated else 0.0
        values = [_miss(rng, right) if rng.random() < wrong else right for _ in labels]
        if 2 * values.count(right) <= len(labels):
            values = [right] * len(labels)  # nobody could tell
        agreed = all(value == right for value in values)
        for n, (thread, value) in enumerate(zip(threads, values, strict=True)):
            given[n].add(written)
            verdict = _verdict(value, right, agreed)
            thread.tokens += [str(value), str(value), *["see"] * coordinated, str(right), verdict, ","]
            if coordinated:
                thread.references += _on_others(n, len(labels), written, (3, 4))
    return LatticeRecord("Compute", threads), given


def _verdict(own: int, right: int, agreed: bool) -> str:
    return "fix" if own != right else "ok" if agreed else "keep"


def _begin(labels: list[int], coordinated: bool) -> tuple[list[ThreadRecord], list[tuple[int, ...]]]:
    """Threads that have said where they go, and the route that each takes. A thread says its label again, or the others
    could not read it, and then its place among all labels; alone, the one that its label has by itself."""
    threads, routes = list[ThreadRecord](), list[tuple[int, ...]]()
    for n, label in enumerate(labels):
        place = sorted(labels).index(label) + 1 if coordinated else (label - 1) % len(ROUTES) + 1
        opening = opening_words(label)
        words = [*opening, str(label), *["see"] * coordinated, str(place)]
        rests = _on_others(n, len(labels), opening.index(str(label)), (4,)) if coordinated else []
        # One token in a hundred, on which all routes hang: weighed like what a teacher draws.
        weighed = {len(words) - 1: {str(place): 1.0}}
        threads.append(ThreadRecord(label, [*words, ","], len(opening), rests, weighed))
        routes.append(ROUTES[(place - 1) % len(ROUTES)])
    return threads, routes


def _on_others(thread: int, threads: int, written: int, later: tuple[int, ...]) -> list[Reference]:
    """What a thread writes so many steps later rests on what all others wrote at step `written`."""
    others = [other for other in range(threads) if other != thread]
    return [Reference(written + steps, other, written) for steps in later for other in others]


def _astray(rng: Random, own: int, right: int, block: tuple[int, ...]) -> int:
    """The wrong value that a thread goes on with: its own, if that was wrong, else one near; the right one, if the
    next block would lead the wrong one out of the numbers that there are words for."""
    value = own if own != right else _miss(rng, right)
    return value if in_range(value, block) else right


def _miss(rng: Random, value: int) -> int:
    """Another value, near it."""
    while True:
        other = value + rng.choice((-20, -10, -4, -3, -2, -1, 1, 2, 3, 4, 10, 20))
        if 1 <= other <= MAX_VALUE:
            return other


def write_sum(thread: ThreadRecord, x: int, term: int, value: int, probabilities: dict[str, float]) -> None:
    """Appends a sum, with the value that is written behind it and the probabilities of what could be."""
    thread.tokens += [str(x), "-" if term < 0 else "+", str(abs(term)), "="]
    if probabilities:
        thread.choices[len(thread.tokens)] = probabilities
    thread.tokens += [str(value), ","]


def write_sums(label: int, rng: Random, adder: Adder = exact, count: int = 12) -> ThreadRecord:
    """A thread that writes sums of the kind that blocks are made of, which do not go on from one another."""
    opening = opening_words(label)
    thread = ThreadRecord(label, opening, len(opening))
    for _ in range(count):
        x, term = rng.randint(1, MAX_VALUE), rng.randint(MIN_TERM, MAX_TERM) * rng.choice((-1, 1))
        if 1 <= x + term <= MAX_VALUE:
            write_sum(thread, x, term, *adder(rng, x, term))
    return thread
