"""What threads do with each other, over the recordings of many puzzles: when they read, what, and in which heads.

    attention to others    softmax mass of a token's query on entries of other threads; the rest lies on the null entry
    what comes through     the same times the gate of each head, mean over heads

By layer, over the life of a thread (from its first sampled token at 0 to its last at 1), by moment
(`lace.viz.moments`), and around moments: Figures 6 and 7 of arXiv 2604.15529 show such curves. Each puzzle counts
alike: a value is the mean of the puzzles' own means, with the half-width of its 95 % interval (normal approximation
over puzzles).

Shape letters as in `lace.viz.trace`: G tokens, Y layers, V views, H heads, N threads, K entries kept; P puzzles,
M moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lace.engine.diversity import token_diversity
from lace.viz.moments import MOMENTS, moments
from lace.viz.trace import Trace

Array = NDArray[np.float64]
BINS = 20
"""Of the life of a thread."""
AROUND = ("choice", "take-over", "verdict", "tag")
"""Moments whose surroundings are looked at."""
REACH = 8
"""Tokens before and behind."""
WINDOW = 24
"""Tokens of each thread whose difference is the diversity at a step."""
EVERY = 4
"""Steps between two values of diversity."""
Z95 = 1.96


@dataclass(frozen=True)
class _Tokens:
    """The sampled tokens of a recording; everything else of it is left out here."""

    life_G: Array
    moment_G: NDArray[np.int64]
    """Place in `MOMENTS`."""
    starts: list[tuple[int, int]]
    """First token and number of tokens of each thread, in G."""
    gate_YG: Array
    share_YG: Array
    through_YHG: Array
    read_YHGM: Array
    """What comes through of the kept entries, by the moment of the token that is read."""


def pool(traces: Sequence[Trace]) -> dict[str, Any]:
    """Takes recordings of one model together, one for each puzzle.

    Returns:
        What can be written as JSON: `layers`, `heads`, `puzzles`, `threads`; estimates as {"value", "half"}, whose last
        dimension is the layer where they have one: `gate`, `share` and `through` of each layer, `life` (by bin),
        `moments` (with `n` tokens, and `heads`, `reads`: what comes through by layer and head, and by the moment of the
        tokens that are read), `around` (by distance), `diversity` (by step).

    Raises:
        ValueError: one line, if there are none, if they have no readings, or if their layers differ.
    """
    if not traces:
        raise ValueError("there are no traces to take together")
    if len({(tuple(trace.layers), trace.gates_YGH.shape[2]) for trace in traces}) > 1:
        raise ValueError("only traces of the same layers and heads can be taken together")
    if not traces[0].layers:
        raise ValueError("these traces hold no readings: their threads do not read each other")
    tokens = [_tokens(trace) for trace in traces]
    return {
        "puzzles": len(traces),
        "threads": sorted({len(trace.threads) for trace in traces}),
        "layers": traces[0].layers,
        "heads": traces[0].gates_YGH.shape[2],
        **{name: _estimate([getattr(t, f"{name}_YG").mean(axis=1) for t in tokens]) for name in ("gate", "share")},
        "through": _estimate([t.through_YHG.mean(axis=(1, 2)) for t in tokens]),
        "life": _over_life(tokens),
        "moments": _by_moment(tokens),
        "around": {moment: _around(tokens, moment) for moment in AROUND},
        "diversity": diversity_over_time(traces),
    }


def diversity_over_time(traces: Sequence[Trace]) -> dict[str, Any]:
    """How much what threads have written in the last `WINDOW` steps differs (`lace.engine.diversity`), by step.

    Of threads that are still writing, up to the step at which most puzzles have fewer than two of them.
    """
    longest = max(len(thread.texts) for trace in traces for thread in trace.threads)
    steps = np.arange(WINDOW, longest + 1, EVERY)
    rows = np.array([[_diversity(trace, int(step)) for step in steps] for trace in traces])
    common = np.isfinite(rows).mean(axis=0) >= 0.5
    return {"steps": steps[common].tolist(), **_estimate(list(rows[:, common]))}


def _diversity(trace: Trace, step: int) -> float:
    written, start = [], 0
    for thread in trace.threads:
        if len(thread.texts) >= step:
            written.append(trace.token_ids_G[start + max(thread.given, step - WINDOW) : start + step].tolist())
        start += len(thread.texts)
    return token_diversity(written) if len(written) > 1 else math.nan


# --- one recording ----------------------------------------------------------------------------------------------


def _tokens(trace: Trace) -> _Tokens:
    lengths = [len(thread.texts) for thread in trace.threads]
    first = np.cumsum([0, *lengths])[:-1]
    life: list[float] = []
    moment: list[int] = []
    kept, starts = [], []
    every_moment = np.full(sum(lengths), list(MOMENTS).index("work"))
    for thread, start, length in zip(trace.threads, first, lengths, strict=True):
        sampled = length - thread.given
        places = start + thread.given + np.arange(sampled)
        names = [list(MOMENTS).index(name) for name in moments(thread.texts[thread.given :])]
        every_moment[places] = names
        starts.append((len(life), sampled))
        life += [n / max(1, sampled - 1) for n in range(sampled)]
        moment += names
        kept.append(places)
    keep_G = np.concatenate(kept)
    own_G = np.repeat(np.arange(len(lengths)), lengths)
    mass_YGHN = trace.mass().numpy()
    mass_YGHN[:, np.arange(len(own_G)), :, own_G] = 0
    share_YGH = mass_YGHN.sum(axis=-1)[:, keep_G]
    gate_YGH = trace.gates_YGH.float().numpy()[:, keep_G]
    return _Tokens(
        np.array(life),
        np.array(moment),
        starts,
        gate_YG=gate_YGH.mean(axis=2),
        share_YG=share_YGH.mean(axis=2),
        through_YHG=(gate_YGH * share_YGH).transpose(0, 2, 1),
        read_YHGM=_read_moments(trace, every_moment, first, keep_G, gate_YGH),
    )


def _read_moments(
    trace: Trace, moment_G: NDArray[np.int64], first_N: NDArray[np.int64], keep_G: NDArray[np.int64], gate_YGH: Array
) -> Array:
    """Gate times weight of the kept entries of each head, by the moment of the token that is read."""
    entries_YHGK = trace.entries_YVGK[:, 1:, keep_G].long().numpy()
    weights_YHGK = trace.weights_YVGK[:, 1:, keep_G].float().numpy()
    threads = len(trace.threads)
    place = np.minimum(first_N[entries_YHGK % threads] + entries_YHGK // threads, len(moment_G) - 1)
    read_YHGK = moment_G[place]
    through = weights_YHGK * gate_YGH.transpose(0, 2, 1)[..., None]
    return np.stack([(through * (read_YHGK == m)).sum(axis=-1) for m in range(len(MOMENTS))], axis=-1)


# --- all recordings ---------------------------------------------------------------------------------------------


def _over_life(tokens: Sequence[_Tokens]) -> dict[str, Any]:
    share, through = [], []
    for own in tokens:
        place_G = np.minimum((own.life_G * BINS).astype(int), BINS - 1)
        share.append(_means(own.share_YG, place_G, BINS))
        through.append(_means(own.through_YHG.mean(axis=1), place_G, BINS))
    return {"share": _estimate(share), "through": _estimate(through)}


def _by_moment(tokens: Sequence[_Tokens]) -> dict[str, Any]:
    found = {}
    for m, name in enumerate(MOMENTS):
        of = [(own, own.moment_G == m) for own in tokens if (own.moment_G == m).any()]
        if not of:
            continue
        found[name] = {
            "n": sum(int(here.sum()) for _, here in of),
            "share": _estimate([own.share_YG[:, here].mean(axis=1) for own, here in of]),
            "through": _estimate([own.through_YHG[:, :, here].mean(axis=(1, 2)) for own, here in of]),
            "heads": _rounded(np.mean([own.through_YHG[:, :, here].mean(axis=2) for own, here in of], axis=0)),
            "reads": {
                read: _rounded(np.mean([own.read_YHGM[:, :, here, k].mean(axis=2) for own, here in of], axis=0))
                for k, read in enumerate(MOMENTS)
            },
        }
    return found


def _around(tokens: Sequence[_Tokens], moment: str) -> dict[str, Any] | None:
    """By the distance of a token from the moment; None if there is no such moment."""
    share, through, n = [], [], 0
    for own in tokens:
        pairs = list(_near(own, list(MOMENTS).index(moment)))
        if not pairs:
            continue
        n += sum(int(distance == 0) for _, distance in pairs)
        places, distance = np.array(pairs).T
        share.append(_means(own.share_YG[:, places], distance + REACH, 2 * REACH + 1))
        through.append(_means(own.through_YHG.mean(axis=1)[:, places], distance + REACH, 2 * REACH + 1))
    return {"n": n, "share": _estimate(share), "through": _estimate(through)} if n else None


def _near(own: _Tokens, moment: int) -> Iterator[tuple[int, int]]:
    """Tokens around the beginnings of a moment, with their distance from it; those of its own thread."""
    for start, length in own.starts:
        here = own.moment_G[start : start + length] == moment
        for place in np.flatnonzero(here & ~np.concatenate(([False], here[:-1]))).tolist():
            for token in range(max(0, place - REACH), min(length, place + REACH + 1)):
                yield start + token, token - place


def _means(values_YG: Array, place_G: NDArray[np.int64], places: int) -> Array:
    """Mean of the values at each place, (places, Y); nan where there is none."""
    sums = np.stack([np.bincount(place_G, row, places) for row in values_YG], axis=-1)
    counts = np.bincount(place_G, minlength=places)[:, None]
    means: Array = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def _estimate(of_puzzles: Sequence[Array]) -> dict[str, Any]:
    """Mean over puzzles and half the width of its interval, each where at least one, or two, have a value."""
    values = np.stack(of_puzzles)
    known = np.isfinite(values)
    n = known.sum(axis=0)
    mean = np.divide(np.where(known, values, 0).sum(axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    deviation = np.sqrt(np.divide(squares, n - 1, out=np.full(n.shape, np.nan), where=n > 1))
    return {"value": _rounded(mean), "half": _rounded(Z95 * deviation / np.sqrt(np.maximum(n, 1)))}


def _rounded(values: Array) -> Any:
    """Nested lists; None where there is no value."""
    return [_rounded(v) for v in values] if values.ndim else None if np.isnan(values) else round(float(values), 5)
