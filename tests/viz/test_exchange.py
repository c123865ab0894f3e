"""What is taken together from recordings, against slow loops over their tokens; and silenced heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lace.engine.engine import Engine
from lace.engine.sampling import SamplingParams
from lace.lattice.graft import numbered_lattices
from lace.viz.exchange import BINS, EVERY, REACH, WINDOW, pool
from lace.viz.moments import MOMENTS, moments
from lace.viz.silence import silenced
from lace.viz.trace import Trace
from tiny_engine import PROMPTS, new_model
from traces import synthetic_trace

SEARCH = (
    "(y-z)*x (y-z)*x 14 - 6 = 8 , 9 * 8 = 72 no , (x-y)*z (x-y)*z 14 - 9 = 5 , 6 * 5 = 30 yes (x-y)*z 13 answer: 6 * "
    "( 14 - 9 ) [[best]]"
)


def _named(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return [(w, m) for w, m in zip(words, moments([f" {w}" for w in words]), strict=True) if m != "work"]


def test_moments_of_a_search() -> None:
    assert _named(SEARCH.replace(" 6 * ( 14 - 9 )", "")) == [
        ("(y-z)*x", "first"),
        ("(y-z)*x", "again"),
        ("no", "verdict"),
        ("(x-y)*z", "choice"),
        ("(x-y)*z", "again"),
        ("yes", "verdict"),
        ("(x-y)*z", "finding"),
        ("13", "finding"),
        ("answer:", "closing"),
        ("[[best]]", "tag"),
    ]
    assert _named("(x+y)-z (x+y)-z 3 + 4 = 7 no , (x-y)*z see 14 - 9 = 5 done") == [
        ("(x+y)-z", "first"),
        ("(x+y)-z", "again"),
        ("no", "verdict"),
        ("(x-y)*z", "take-over"),
        ("see", "see"),
        ("done", "waiting"),
    ]
    assert moments(["(x-y)*z", " (x-y)*z", " see"])[:2] == ["take-over", "again"]


def test_moments_of_a_sum() -> None:
    assert _named("7 see 2 , 146 + 17 = 163 , 75 - 27 = 48 48 see 44 fix , answer: 44 [[success]]") == [
        ("see", "see"),
        ("2", "finding"),
        ("48", "again"),
        ("see", "see"),
        ("44", "finding"),
        ("fix", "verdict"),
        ("answer:", "closing"),
        ("44", "closing"),
        ("[[success]]", "tag"),
    ]
    assert moments([" [[best]]", ""]) == ["tag", "end"]
    assert moments(["", " Hello"]) == ["work", "work"]


def _traces(count: int = 3) -> list[Trace]:
    return [
        synthetic_trace(threads=3, steps=40 + 4 * n, texts=[f" {word}" for word in SEARCH.split()], seed=n)
        for n in range(count)
    ]


def _by_hand(trace: Trace) -> list[tuple[int, int, str, float, np.ndarray, np.ndarray]]:
    """Thread, sampled step, moment, life, share of each layer, and what comes through each layer and head."""
    found, place, mass = [], 0, trace.mass().numpy()
    for n, thread in enumerate(trace.threads):
        names = moments(thread.texts[thread.given :])
        for step in range(len(thread.texts)):
            if step >= thread.given:
                others = np.delete(mass[:, place], n, axis=-1).sum(axis=-1)
                through = others * trace.gates_YGH[:, place].float().numpy()
                at = step - thread.given
                found.append((n, at, names[at], at / (len(names) - 1), others.mean(axis=1), through))
            place += 1
    return found


def test_pooled_values_are_those_of_loops_over_tokens() -> None:
    traces = _traces()
    pooled, tokens = pool(traces), [_by_hand(trace) for trace in traces]
    assert (pooled["puzzles"], pooled["threads"], pooled["layers"], pooled["heads"]) == (3, [3], [4, 6], 2)
    shares = np.array([np.mean([t[4] for t in own], axis=0) for own in tokens])
    np.testing.assert_allclose(pooled["share"]["value"], shares.mean(axis=0), atol=2e-5)
    half = 1.96 * shares.std(axis=0, ddof=1) / 3**0.5
    np.testing.assert_allclose(pooled["share"]["half"], half, atol=2e-5)

    for b in (0, 7, BINS - 1):
        in_bin = [[t[5].mean(axis=1) for t in own if min(int(t[3] * BINS), BINS - 1) == b] for own in tokens]
        expected = np.mean([np.mean(own, axis=0) for own in in_bin], axis=0)
        np.testing.assert_allclose(pooled["life"]["through"]["value"][b], expected, atol=2e-5)

    assert set(pooled["moments"]) == {t[2] for own in tokens for t in own} <= set(MOMENTS)
    for name, seen in pooled["moments"].items():
        of = [[t[5] for t in own if t[2] == name] for own in tokens]
        assert seen["n"] == sum(map(len, of))
        heads = np.mean([np.mean(own, axis=0) for own in of if own], axis=0)
        np.testing.assert_allclose(seen["heads"], heads, atol=2e-5)
        np.testing.assert_allclose(seen["through"]["value"], heads.mean(axis=1), atol=2e-5)
        assert (np.sum(list(seen["reads"].values()), axis=0) <= np.array(seen["heads"]) + 5e-3).all()


def test_what_stands_around_a_moment() -> None:
    traces = _traces()
    around = pool(traces)["around"]
    assert around["take-over"] is None
    tokens = [_by_hand(trace) for trace in traces]
    for distance in (-REACH, -1, 0, 3):
        means = []
        for own in tokens:
            at = {(t[0], t[1]): t for t in own}
            events = [(n, s) for n, s, name, *_ in own if name == "choice"]
            near = [at[n, s + distance][4] for n, s in events if (n, s + distance) in at]
            means.append(np.mean(near, axis=0))
        value = around["choice"]["share"]["value"][distance + REACH]
        np.testing.assert_allclose(value, np.mean(means, axis=0), atol=2e-5)
    assert around["choice"]["n"] == sum(t[2] == "choice" for own in tokens for t in own)


def test_reads_say_which_token_is_read() -> None:
    """A trace in which all attention goes to one token."""
    trace = _traces(1)[0]
    place = next(n for n, word in enumerate(trace.threads[1].texts) if word == " yes")
    trace.entries_YVGK[:] = torch.tensor(place * 3 + 1).to(trace.entries_YVGK.dtype)
    reads = pool([trace])["moments"]["work"]["reads"]
    assert np.array(reads["verdict"]).min() > 0
    assert all(not np.any(weights) for name, weights in reads.items() if name != "verdict")


def test_diversity_over_time() -> None:
    same = synthetic_trace(threads=2, steps=60)
    same.token_ids_G[60:] = same.token_ids_G[:60]
    diversity = pool([same])["diversity"]
    assert diversity["steps"] == list(range(WINDOW, 61, EVERY))
    assert diversity["value"] == [0.0] * len(diversity["steps"])
    same.token_ids_G[60:90] = -1
    diversity = pool([same])["diversity"]
    assert diversity["value"][0] == 1
    assert diversity["value"][-1] == 0
    assert diversity["half"] == [None] * len(diversity["steps"])  # of one puzzle nothing is known


def test_what_cannot_be_taken_together() -> None:
    with pytest.raises(ValueError, match="no traces"):
        pool([])
    with pytest.raises(ValueError, match="same layers"):
        pool([synthetic_trace(layers=1), synthetic_trace(layers=2)])
    with pytest.raises(ValueError, match="do not read each other"):
        pool([synthetic_trace(layers=0, heads=0)])


def test_a_silenced_head_adds_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    """With all of them silenced threads write as with the lattice off, and afterwards as before."""
    engine = Engine(new_model(tokenizer, layers=(2,)), tokenizer)
    params = SamplingParams(threads=3, max_tokens=14, seed=2, grace=None)
    (lattice,) = numbered_lattices(engine.model).values()
    weights = lattice.up_proj.weight.clone()

    def texts(strategy: str = "lace") -> list[list[int]]:
        return [thread.token_ids for thread in engine.generate(PROMPTS[0], params, strategy=strategy)[0].threads]

    before = texts()
    assert before != texts("independent")
    with silenced(lattice, range(lattice.config.num_heads)):
        assert texts() == texts("independent")
    with silenced(lattice, [1]):
        assert not torch.equal(lattice.up_proj.weight, weights)
        dim = lattice.config.head_dim
        assert torch.equal(lattice.up_proj.weight[:, :dim], weights[:, :dim])
        assert not lattice.up_proj.weight[:, dim : 2 * dim].any()
    assert torch.equal(lattice.up_proj.weight, weights)
    assert texts() == before
