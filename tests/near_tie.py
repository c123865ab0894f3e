"""Two runs of one lattice write the same, or a draw fell so close to a border that rounding decided it."""

from __future__ import annotations

import pytest
import torch

from lace.engine.engine import Engine
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams, choose_tokens
from lace.engine.threads import opening_ids

ROUNDING = 1e-4
"""Largest difference of log-probabilities and of cumulative probabilities that counts as rounding."""


def assert_same_text(engine: Engine, params: SamplingParams, one: LatticeResult, other: LatticeResult) -> bool:
    """Fails unless both runs wrote the same, or part at a near-tie. Returns whether they wrote the same.

    Until they part, the log-probabilities of all tokens agree but for rounding. At the first token in which they
    differ, the model's distribution is computed anew, without any cache: moving the draw and the border of top-p by no
    more than rounding must yield either token.
    """
    assert [t.label for t in one.threads] == [t.label for t in other.threads]
    openings = [opening_ids(engine.tokenizer, engine.config.opening, thread.label) for thread in one.threads]
    parting = None
    for n, (a, b) in enumerate(zip(one.threads, other.threads, strict=True)):
        for place, (token, another) in enumerate(zip(a.token_ids, b.token_ids, strict=False)):
            if token != another:
                step = place + len(openings[n])
                parting = min(parting or (step, n), (step, n))
                break
        else:
            assert len(a.token_ids) == len(b.token_ids) or "lattice" in (a.finish_reason, b.finish_reason)
    last = parting[0] if parting else 10**9
    for a, b, opening in zip(one.threads, other.threads, openings, strict=True):
        before = max(0, last - len(opening))
        assert a.logprobs[:before] == pytest.approx(b.logprobs[:before], abs=ROUNDING)
    if parting is None:
        assert one.threads == [*other.threads] or [t.text for t in one.threads] == [t.text for t in other.threads]
        return True
    step, n = parting
    place = step - len(openings[n])
    candidates = {one.threads[n].token_ids[place], other.threads[n].token_ids[place]}
    drawn = _draws_nearby(engine, params, one, openings, step, n)
    assert candidates <= drawn, f"thread {n} parts at step {step}: {candidates}, but rounding allows {drawn} only"
    return False


@torch.no_grad()
def _draws_nearby(
    engine: Engine, params: SamplingParams, result: LatticeResult, openings: list[list[int]], step: int, n: int
) -> set[int]:
    """Tokens that thread `n` draws at `step` if its uniform number and top-p are moved by rounding."""
    lattice = engine.new_lattice(result.prompt, params, result.strategy)
    prompt = lattice.prompt_ids
    written = [[*o, *t.token_ids][:step] for o, t in zip(openings, result.threads, strict=True)]
    width = len(prompt) + max(map(len, written))
    ids = torch.tensor([[*prompt, *own, *[0] * (width - len(prompt) - len(own))] for own in written])
    mask = torch.tensor([[1] * (len(prompt) + len(own)) + [0] * (width - len(prompt) - len(own)) for own in written])
    steps = torch.where(mask == 1, torch.arange(width) - len(prompt), -1).clamp(min=-1)
    layout = {
        "steps": steps,
        "thread_ids": torch.tensor([thread.label for thread in result.threads]),
        "lattice_rows": torch.arange(len(written))[None],
    }
    out = engine.model(input_ids=ids, attention_mask=mask, **(layout if result.strategy == "lace" else {}))
    logits_1V = out.logits[n, len(prompt) + len(written[n]) - 1][None]
    if params.temperature == 0:
        return set((logits_1V[0] >= logits_1V[0].max() - ROUNDING).nonzero()[:, 0].tolist())
    drawn = set()
    for by in (-ROUNDING, 0.0, ROUNDING):
        for top_p in {params.top_p, min(1.0, params.top_p + ROUNDING), params.top_p - ROUNDING}:
            uniform = (lattice.uniforms_SN[step, n : n + 1] + by).clamp(0, 1 - 1e-12)
            given = torch.tensor([params.temperature]), torch.tensor([params.top_k]), torch.tensor([top_p])
            drawn.add(int(choose_tokens(logits_1V, uniform, *given, True)[0]))
    return drawn
