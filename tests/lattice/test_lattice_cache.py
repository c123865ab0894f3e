"""Decoding with caches equals the full forward pass."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from lace.lattice.attention import read_by_products, read_by_sdpa
from lace.lattice.graft import new_lattice_cache
from lace.lattice.size import lattice_size
from tiny import VOCABULARY, awake_model, batch, logits

PROMPT, STEPS = 3, 7


@torch.no_grad()
def _cached(model: PreTrainedModel, given: dict[str, torch.Tensor], chunks: list[int]) -> torch.Tensor:
    """Logits of the same tokens, the prompt first and then some steps a pass."""
    lattices, threads = given["lattice_rows"].shape
    cache, lattice_cache = DynamicCache(config=model.config), new_lattice_cache(model, lattices, threads, STEPS)
    parts, start = [], 0
    for number, length in enumerate([PROMPT, *chunks]):
        part = slice(start, start + length)
        layout = {
            "steps": given["steps"][:, part],
            "thread_ids": given["thread_ids"],
            "lattice_rows": given["lattice_rows"],
            "lattice_cache": lattice_cache,
        }
        out = model(
            input_ids=given["input_ids"][:, part],
            attention_mask=given["attention_mask"][:, : part.stop],
            position_ids=given["position_ids"][:, part],
            past_key_values=cache,
            use_cache=True,
            **(layout if number else {}),
        )
        parts.append(out.logits)
        start += length
    assert lattice_cache.length == STEPS
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("chunks", [[1] * STEPS, [3, 1, 2, 1], [STEPS]])
@pytest.mark.parametrize("visibility", ["strict", "causal", "same_step"])
def test_cached_decoding_equals_full_forward(visibility: str, chunks: list[int]) -> None:
    model, given = awake_model(visibility), batch([3, 2], STEPS, [PROMPT, PROMPT])
    torch.testing.assert_close(_cached(model, given, chunks), logits(model, given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [[1] * STEPS, [3, 1, 2, 1]], ids=str)
@pytest.mark.parametrize("visibility", ["strict", "causal"])
@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_horizon(horizon: int, visibility: str, chunks: list[int]) -> None:
    """The cache forgets what the full pass does not see; and it matters."""
    model, given = awake_model(visibility, horizon=horizon), batch([3, 2], STEPS, [PROMPT, PROMPT])
    given["steps"][0, PROMPT + 3 :] = -1
    expected = logits(model, given)
    torch.testing.assert_close(_cached(model, given, chunks), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(awake_model(visibility), given), expected, atol=1e-3)


def test_reading_by_products_equals_reading_by_attention() -> None:
    """The one a GPU takes, the other the processor; some threads see the null entry alone."""
    generator = torch.Generator().manual_seed(0)
    qkv_LNX = torch.randn(2, 3, 6 * 8, generator=generator)
    k_LEK, v_LEK = torch.randn(2, 11, 2 * 8, generator=generator).chunk(2, dim=-1)
    hidden_L1NE = torch.rand(2, 1, 3, 11, generator=generator) < 0.5
    hidden_L1NE[0, 0, 1], hidden_L1NE[..., 0] = True, False
    added_L1NE = torch.zeros(hidden_L1NE.shape).masked_fill_(hidden_L1NE, -torch.inf)
    given = qkv_LNX[..., : 4 * 8].unflatten(2, (4, 8)), k_LEK, v_LEK, added_L1NE
    torch.testing.assert_close(read_by_products(*given), read_by_sdpa(*given))


def test_in_every_family(family: str) -> None:
    model, given = awake_model(family=family), batch([3, 2], STEPS, [PROMPT, PROMPT])
    torch.testing.assert_close(_cached(model, given, [1] * STEPS), logits(model, given), rtol=1e-4, atol=1e-4)


def test_with_read_self_and_finished_threads() -> None:
    model, given = awake_model("causal", read_self=True), batch([3, 2], STEPS, [PROMPT, PROMPT])
    given["steps"][0, PROMPT + 3 :] = -1
    given["steps"][4, PROMPT + 1 :] = -1
    torch.testing.assert_close(_cached(model, given, [1] * STEPS), logits(model, given), rtol=1e-4, atol=1e-4)


def test_prefill_once_and_fan_out() -> None:
    """The prompt's cache of one row, repeated, serves every thread."""
    model, given = awake_model(), batch([4], STEPS, [PROMPT])
    expected = logits(model, given)
    with torch.no_grad():
        prefill = model(input_ids=given["input_ids"][:1, :PROMPT], use_cache=True)
        cache = prefill.past_key_values
        cache.batch_repeat_interleave(4)
        out = model(
            input_ids=given["input_ids"][:, PROMPT:],
            attention_mask=given["attention_mask"],
            position_ids=given["position_ids"][:, PROMPT:],
            past_key_values=cache,
            steps=given["steps"][:, PROMPT:],
            thread_ids=given["thread_ids"],
            lattice_rows=given["lattice_rows"],
        )
    torch.testing.assert_close(out.logits, expected[:, PROMPT:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prefill.logits.expand(4, -1, -1), expected[:, :PROMPT], rtol=1e-4, atol=1e-4)


def test_dropping_lattices_keeps_the_others() -> None:
    model, given = awake_model(), batch([2, 2], STEPS, [PROMPT, PROMPT])
    cache = new_lattice_cache(model, 2, 2, STEPS)
    start = {
        "input_ids": given["input_ids"][:, PROMPT : PROMPT + 4],
        "position_ids": given["position_ids"][:, PROMPT : PROMPT + 4],
        "steps": given["steps"][:, PROMPT : PROMPT + 4],
        "thread_ids": given["thread_ids"],
        "lattice_rows": given["lattice_rows"],
    }
    logits(model, start, lattice_cache=cache)
    keys, steps = cache.keys.clone(), cache.steps_LSN.clone()
    cache.keep_lattices(torch.tensor([1]))
    assert torch.equal(cache.keys, keys[:, 1:])
    assert torch.equal(cache.steps_LSN, steps[1:])


def test_full_cache_is_one_clear_error() -> None:
    model, given = awake_model(), batch([2], STEPS, [PROMPT])
    cache = new_lattice_cache(model, 1, 2, 4)
    layout = {name: given[name] for name in ("input_ids", "steps", "thread_ids", "lattice_rows")}
    with pytest.raises(ValueError, match="the lattice cache holds 4 steps, not 10"):
        logits(model, layout, lattice_cache=cache)


def test_bytes_per_token_are_what_the_size_says() -> None:
    model = awake_model(layers=(1, 3))
    cache = new_lattice_cache(model, 1, 2, 4)
    expected = 2 * 2 * 12 * 4  # 2 layers x (key + value) x 12 dimensions x 4 bytes
    assert cache.keys.nbytes + cache.values.nbytes == 2 * 4 * expected
    assert lattice_size(model).lattice_bytes == expected


@pytest.mark.parametrize("visibility", ["strict", "causal", "same_step"])
@pytest.mark.parametrize("read_self", [False, True])
def test_swapped_cache_reads_the_next_lattice_and_not_its_own(visibility: str, read_self: bool) -> None:
    """Change one token: exactly those rows move that read its lattice, and the row itself."""
    model = awake_model(visibility, layers=(2,), read_self=read_self)
    given = batch([2, 2, 2], STEPS, [PROMPT] * 3)

    def run(changed: dict[str, torch.Tensor]) -> torch.Tensor:
        return logits(model, changed, lattice_cache=new_lattice_cache(model, 3, 2, PROMPT + STEPS, swapped=True))

    before = run(given)
    for row in range(6):
        changed = {**given, "input_ids": given["input_ids"].clone()}
        changed["input_ids"][row, PROMPT + 1] = (changed["input_ids"][row, PROMPT + 1] + 1) % VOCABULARY
        after = run(changed)
        lattice, place = divmod(row, 2)
        reader = (lattice - 1) % 3  # reads the next lattice, cyclically
        readers = {2 * reader + n for n in range(2) if read_self or n != place}
        moved = {n for n in range(6) if not torch.allclose(before[n], after[n], rtol=1e-5, atol=1e-5)}
        assert moved == readers | {row}
        assert torch.equal(before[:, : PROMPT + 1], after[:, : PROMPT + 1])
