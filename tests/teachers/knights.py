"""Solves the islands of knights and knaves of reasoning-gym by suppositions, at times without the last check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

_NAMES = re.compile(r"You meet \d+ inhabitants: (.*?)\. ")
_KINDS = re.compile(r"inhabited only by \w+ and \w+\..*So who is (an?) (\w+) and who is (an?) (\w+)\?", re.DOTALL)
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Island:
    """A puzzle: who says what."""

    names: tuple[str, ...]
    kinds: tuple[str, str]
    """Of those who tell the truth, and of those who lie; with article."""
    claims: tuple[str, ...]
    """By speaker."""

    def holds(self, claim: str, truthful: dict[str, bool]) -> bool:
        """Whether a claim is true if these are truthful."""
        if found := re.fullmatch(r"if (.*) then (.*)", claim):
            return not self.holds(found[1], truthful) or self.holds(found[2], truthful)
        if " if and only if " in claim:
            first, _, second = claim.partition(" if and only if ")
            return self.holds(first, truthful) == self.holds(second, truthful)
        for word, join in ((" and ", all), (" or ", any)):
            if word in claim:
                return join(self.holds(part, truthful) for part in claim.split(word))
        found = re.fullmatch(r"(\w+) is (not )?an? (\w+)", claim)
        assert found is not None, claim
        is_first = found[3] == self.kinds[0].split()[1]
        return (truthful[found[1]] == is_first) != bool(found[2])

    def contradiction(self, truthful: dict[str, bool]) -> str | None:
        """The first speaker whose words do not fit who they are."""
        for name, claim in zip(self.names, self.claims, strict=True):
            if self.holds(claim, truthful) != truthful[name]:
                kind = self.kinds[0 if truthful[name] else 1]
                says = "true" if self.holds(claim, truthful) else "false"
                return f"what {name} says, that {claim}, would be {says}, but {name} would be {kind}"
        return None

    def told(self, truthful: dict[str, bool]) -> str:
        """An answer."""
        return ", and ".join(f"{name} is {self.kinds[0 if truthful[name] else 1]}" for name in self.names) + "."


@cache
def read(question: str) -> Island | None:
    """The puzzle; None if it is no such question."""
    names, kinds = _NAMES.search(question), _KINDS.search(question)
    if names is None or kinds is None:
        return None
    people = tuple(re.findall(r"\w+", names[1].replace(" and ", " ")))
    body = question[names.end() : question.index("So who is")]
    said: dict[str, str] = {}
    for sentence in re.split(r'(?<=\.)\s+|(?<=\.")\s+', body.strip()):
        if quoted := _QUOTED.search(sentence):
            outside, claim = sentence.replace(quoted[0], ""), quoted[1]
        else:
            outside, _, claim = sentence.partition(" that ")
        speaker = next(name for name in people if re.search(rf"\b{name}\b", outside))
        said[speaker] = claim.strip(" ,.")
    if set(said) != set(people):
        return None
    return Island(people, (f"{kinds[1]} {kinds[2]}", f"{kinds[3]} {kinds[4]}"), tuple(said[name] for name in people))


def solve(question: str, turn: int, errors: float) -> dict[str, str] | None:
    """A path that begins with the supposition of this turn; None for a question of another kind."""
    island = read(question)
    if island is None:
        return None
    rng = Random(f"{question}/{turn}")
    starts = [(name, kind) for name in island.names for kind in (True, False)]
    first, truth = Random(question).sample(starts, len(starts))[turn % len(starts)]
    careless = rng.random() < errors
    lines = [f"Suppose that {first} is {island.kinds[0 if truth else 1]}."]
    worlds = [dict(zip(island.names, world, strict=True)) for world in product((True, False), repeat=len(island.names))]
    rng.shuffle(worlds)
    worlds.sort(key=lambda world: world[first] != truth)
    turned = False
    for world in worlds:
        case, problem = island.told(world).rstrip("."), island.contradiction(world)
        if world[first] != truth and not turned:
            lines.append(f"So that supposition about {first} fails, and it must be the other way round.")
            turned = True
        if problem is None or careless:
            lines.append(f"Take the case that {case}. " + ("That looks fine." if problem else "Every word then fits."))
            break
        lines.append(f"Were it that {case}, then {problem}. No.")
    answer = island.told(world)
    lines.append(f"Hence {answer}")
    summary = f"Supposes that {first} is {island.kinds[0 if truth else 1]} and goes through the cases."
    return {"solution": "\n".join(lines), "answer": answer, "summary": summary}


def is_right(question: str, answer: str) -> bool:
    """Whether an answer to such a question is right."""
    island = read(question)
    assert island is not None
    return _world(island, answer) is not None and island.contradiction(_world(island, answer) or {}) is None


def mistake(question: str, step: str) -> str | None:
    """What is wrong with a step that accepts a case."""
    island = read(question)
    assert island is not None
    if not step.startswith(("Take the case", "Hence")) or (world := _world(island, step)) is None:
        return None
    return island.contradiction(world)


def _world(island: Island, text: str) -> dict[str, bool] | None:
    """Who is truthful by a text that says it of everybody."""
    first, second = (kind.split()[1] for kind in island.kinds)
    found = dict(re.findall(rf"\b({'|'.join(island.names)}) is an? ({first}|{second})\b", text))
    return {name: kind == first for name, kind in found.items()} if len(found) == len(island.names) else None
