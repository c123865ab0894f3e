"""An endless order of a fixed number of things."""

from __future__ import annotations

from random import Random


class Rounds:
    """Places 0..count-1 round after round, each round shuffled anew. Item n depends on the count, the seed and n alone,
    so that a resumed run sees what an unbroken one would have seen.

    Args:
        count: of the things.
        seed: of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._round, self._order = -1, list[int]()

    def __getitem__(self, index: int, /) -> int:
        turn, place = divmod(index, self.count)
        if turn != self._round:
            self._round, self._order = turn, list(range(self.count))
            Random(f"{self.seed}/round/{turn}").shuffle(self._order)
        return self._order[place]
