"""Draws: the right distribution, the right limits, and independence of what else is in the batch."""

from __future__ import annotations

import pytest
import torch

from lace.engine.sampling import LIKELIEST, SamplingParams, choose_tokens, draw_thread_ids, draw_uniforms
from tiny import tiny_config


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(uniforms)
    return choose_tokens(
        logits.expand(rows, -1),
        uniforms,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        bool(top_k or top_p < 1),
    )


LOGITS = torch.tensor([[0.3, 2.0, -1.0, 1.0, 0.0]])
GRID = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000


def test_tokens_come_as_often_as_the_softmax_says() -> None:
    for temperature in (1.0, 0.5):
        tokens, _ = draw(LOGITS, GRID, temperature)
        shares = torch.bincount(tokens, minlength=5) / len(GRID)
        torch.testing.assert_close(shares, (LOGITS[0] / temperature).softmax(-1), atol=2e-4, rtol=0)


def test_logprobs_are_the_models_own_whatever_the_limits() -> None:
    tokens, logprobs = draw(LOGITS, GRID[::500], temperature=0.4, top_k=3)
    torch.testing.assert_close(logprobs, LOGITS[0].log_softmax(-1)[tokens])


def test_greedy_takes_the_most_likely_token() -> None:
    assert draw(LOGITS, GRID[::1000], temperature=0)[0].tolist() == [1] * 10


def test_top_k_and_top_p_keep_the_most_likely_tokens() -> None:
    assert set(draw(LOGITS, GRID, top_k=2)[0].tolist()) == {1, 3}
    probability = LOGITS[0].softmax(-1)
    just_two = float(probability[1] + probability[3]) - 1e-4
    assert set(draw(LOGITS, GRID, top_p=just_two)[0].tolist()) == {1, 3}
    assert set(draw(LOGITS, GRID, top_p=1e-9)[0].tolist()) == {1}


FEW, MANY = LIKELIEST


@pytest.mark.parametrize("steepness", [0.0, 0.005, 0.1, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(3, 1.0), (0, 0.5), (0, 0.95), (FEW, 1.0), (FEW + 1, 1.0), (MANY, 1.0), (3 * MANY, 0.99)]
)
def test_a_large_vocabulary_is_cut_like_a_small_one(steepness: float, top_k: int, top_p: float) -> None:
    """Tokens in pairs of equal probability, flat to steep, beside a row without a limit: against one sort of all."""
    vocabulary, rows = 4 * MANY, 400
    generator = torch.Generator().manual_seed(0)
    logits = -steepness * (torch.randperm(vocabulary, generator=generator) // 2).float()[None]
    uniforms = torch.rand(rows, dtype=torch.float64, generator=generator)
    limits = torch.tensor([top_k, 0] * (rows // 2)), torch.tensor([top_p, 1.0] * (rows // 2))
    tokens, _ = choose_tokens(logits.expand(rows, -1), uniforms, torch.ones(rows), *limits, True)

    probability = logits[0].double().softmax(-1)
    kept, mass = set(), 0.0
    for rank, token in enumerate(sorted(range(vocabulary), key=lambda token: -probability[token])):
        if (top_k and rank >= top_k) or (rank and mass >= limits[1][0]):
            break
        kept.add(token)
        mass += float(probability[token])
    weights = torch.tensor([probability[token] * (token in kept) for token in range(vocabulary)])
    limited = torch.searchsorted(weights.cumsum(0), uniforms[::2] * weights.sum(), right=True)
    free = torch.searchsorted(probability.cumsum(0), uniforms[1::2] * probability.sum(), right=True)
    assert tokens[::2].tolist() == limited.tolist()
    assert tokens[1::2].tolist() == free.tolist()


def test_limits_of_one_row_do_not_touch_another() -> None:
    uniforms = torch.rand(64, dtype=torch.float64)
    free, _ = draw(LOGITS, uniforms)
    mixed, _ = choose_tokens(
        LOGITS.expand(64, -1),
        uniforms,
        torch.ones(64),
        torch.tensor([0, 2] * 32),
        torch.ones(64),
        True,
    )
    assert torch.equal(mixed[::2], free[::2])


def test_more_steps_do_not_change_earlier_draws() -> None:
    params = SamplingParams(threads=3, seed=11)
    assert torch.equal(draw_uniforms(params, 20)[:7], draw_uniforms(params, 7))


def test_all_bits_of_a_seed_count() -> None:
    """torch's generator takes 32 of them."""
    seeds = (1, 1 + 2**32, 1 + 2**40, 1 + 2**62)
    drawn = [draw_uniforms(SamplingParams(threads=2, seed=seed), 3) for seed in seeds]
    labels = [draw_thread_ids(SamplingParams(threads=8, seed=seed), tiny_config(max_thread_id=32)) for seed in seeds]
    assert len({str(uniforms.tolist()) for uniforms in drawn}) == len({str(ids) for ids in labels}) == 4
    assert torch.equal(drawn[0], torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
