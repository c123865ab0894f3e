"""Observing a lattice: what is recorded is what the layers really computed, and they compute it undisturbed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedTokenizerFast

from lace.engine.engine import Engine
from lace.engine.sampling import SamplingParams
from lace.lattice.attention import LatticeAttention
from lace.lattice.graft import graft, lattice_layers, lattice_off, new_lattice_cache
from lace.lattice.observe import LayerObservation, lattice_metrics, observe_lattice, pooled, read_again
from lace.lattice.rope import lattice_angles, rotate
from tiny import awake_model, batch, logits, plain, tiny_config, tiny_model

KINDS: list[dict[str, Any]] = [
    {},
    {"visibility": "causal"},
    {"visibility": "same_step"},
    {"read_self": True},
    {"gate": "none"},
]


def _in_steps(
    model: Any, given: dict[str, torch.Tensor], prompt: int, most_threads: int, swapped: bool = False
) -> None:
    """The same pass as decoding makes it: the prompt, then step by step into a cache."""
    past, width = DynamicCache(), given["input_ids"].shape[1]
    cache = new_lattice_cache(model, len(given["lattice_rows"]), most_threads, width - prompt, swapped=swapped)
    with torch.no_grad():
        model(**{k: v[:, :prompt] for k, v in plain(given).items()}, past_key_values=past, use_cache=True)
        for t in range(prompt, width):
            model(
                input_ids=given["input_ids"][:, t : t + 1],
                attention_mask=given["attention_mask"][:, : t + 1],
                position_ids=given["position_ids"][:, t : t + 1],
                steps=given["steps"][:, t : t + 1],
                thread_ids=given["thread_ids"],
                lattice_rows=given["lattice_rows"],
                lattice_cache=cache,
                past_key_values=past,
                use_cache=True,
            )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("cached", ["", "cached", "swapped"])
def test_the_second_reading_is_the_first(kind: dict[str, Any], cached: str) -> None:
    model, given = awake_model(**kind), batch([3, 3] if cached == "swapped" else [3, 2, 1])
    gaps = []

    def compare(module: LatticeAttention, args: tuple[Any, ...], output: torch.Tensor) -> None:
        read, gate, _ = read_again(module, *args)
        gaps.append((module.up_proj((read * gate[..., None]).flatten(2)) - output).abs().max().item())

    for lattice in lattice_layers(model):
        lattice.register_forward_hook(compare)
    if cached:
        _in_steps(model, given, prompt=3, most_threads=3, swapped=cached == "swapped")
    else:
        logits(model, given)
    assert len(gaps) == len(lattice_layers(model)) * (5 if cached else 1)
    assert max(gaps) < 1e-5


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_means_by_hand(kind: dict[str, Any]) -> None:
    """One softmax at a time, entry by entry, for every query."""
    model, given = awake_model(**kind), batch([3, 2], steps=4)
    inputs = {}
    for place, lattice in enumerate(lattice_layers(model)):
        lattice.register_forward_hook(lambda module, args, output, place=place: inputs.update({place: args[0]}))
    with observe_lattice(model) as found:
        logits(model, given)
    assert list(found) == model.lattice_config.layer_indices(4)
    lattice_of = {int(row): n for n, rows in enumerate(given["lattice_rows"]) for row in rows if row >= 0}
    steps = given["steps"]
    for place, (layer, passes) in enumerate(found.items()):
        module = lattice_layers(model)[place]
        config, x = module.config, inputs[place]
        q, k, _, g = module.qkvg_proj(module.norm(module.down_proj(x))).split(module.split, dim=-1)
        q = q.unflatten(-1, (config.num_heads, config.head_dim))
        cos, sin = lattice_angles(config, steps, given["thread_ids"])
        q, k = rotate(q, cos[:, :, None], sin[:, :, None]), rotate(k, cos, sin)
        shares: list[float] = []
        for row in range(len(steps)):
            for t in range(steps.shape[1]):
                entries = [
                    (other, s)
                    for other in range(len(steps))
                    for s in range(steps.shape[1])
                    if lattice_of[other] == lattice_of[row]
                    and (other != row or config.read_self)
                    and steps[row, t] >= 0
                    and steps[other, s] >= 0
                    and {
                        "strict": steps[other, s] < steps[row, t],
                        "causal": steps[other, s] <= steps[row, t],
                        "same_step": steps[other, s] == steps[row, t],
                    }[config.visibility]
                ]
                foreign = [n for n, (other, _) in enumerate(entries, start=1) if other != row]
                if not foreign:
                    continue
                keys = torch.stack([module.null_key, *(k[place_] for place_ in entries)])
                weights = (q[row, t] @ keys.T / config.head_dim**0.5).softmax(dim=-1)
                shares.append(weights[:, foreign].sum(dim=-1).mean().item())
        seen = passes[0]
        assert seen.layer == layer
        assert seen.sums_S4[:, 3].sum() == len(shares)
        assert seen.cross_thread_attention == pytest.approx(sum(shares) / len(shares), abs=1e-5)
        gate = g[steps >= 0].sigmoid().mean().item() if config.gate == "head" else 1.0
        assert seen.gate == pytest.approx(gate, abs=1e-6)


def test_step_by_step_equals_one_pass() -> None:
    model, given = awake_model(), batch([3, 2])
    with observe_lattice(model) as whole:
        logits(model, given)
    with observe_lattice(model) as steps:
        _in_steps(model, given, prompt=3, most_threads=3)
    for layer, (one,) in whole.items():
        assert [seen.first_step for seen in steps[layer]] == [0, 1, 2, 3, 4]  # the prefill is none of them
        together = pooled(steps[layer])
        torch.testing.assert_close(together.sums_S4, one.sums_S4, atol=1e-5, rtol=1e-5)
        assert one.sums_S4[:, 1].tolist() == [5] * 5
        assert one.sums_S4[:, 3].tolist() == [0, 5, 5, 5, 5]
        assert one.cross_thread_attention_S.isnan().tolist() == [True, False, False, False, False]
        assert torch.equal(one.gate_S, one.sums_S4[:, 0] / 5)


def test_observing_changes_nothing_and_ends() -> None:
    model, given = awake_model(), batch([3, 2])
    before = logits(model, given)
    with observe_lattice(model) as found:
        assert torch.equal(logits(model, given), before)
        with lattice_off(model):
            logits(model, given)
        logits(model, plain(given))
        blind = {**given, "steps": torch.full_like(given["steps"], -1)}
        logits(model, blind)
    logits(model, given)
    assert [len(passes) for passes in found.values()] == [1] * len(lattice_layers(model))
    assert not any(lattice._forward_hooks for lattice in lattice_layers(model))


def test_training_passes() -> None:
    """With gradients, under autocast, and with layers that are computed a second time in the backward pass."""
    model, given = awake_model(), batch([3, 2])
    model.train()
    loss = model(**given).logits.logsumexp(-1).sum()
    loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.activation_checkpointing_enable()
    with observe_lattice(model) as found:
        loss = model(**given).logits.logsumexp(-1).sum()
    loss.backward()
    for p, grad in zip([p for p in model.parameters() if p.grad is not None], expected, strict=True):
        torch.testing.assert_close(p.grad, grad)
    assert all(len(passes) == 1 for passes in found.values())
    with observe_lattice(model) as halves, torch.autocast("cpu", torch.bfloat16):
        model(**given)
    for layer, (exact,) in found.items():
        assert halves[layer][0].gate == pytest.approx(exact.gate, abs=0.02)


def test_decoding_is_observed(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    engine = Engine(graft(model, tiny_config()), tokenizer)
    params = SamplingParams(threads=3, max_tokens=6, seed=1)
    with observe_lattice(engine.model) as found:
        engine.generate("Use 3, 7 and 12 to make 33", params)
    for passes in found.values():
        seen = pooled(passes)
        assert seen.first_step == 0
        assert 0 < seen.cross_thread_attention < 1


def test_a_plain_model_has_nothing_to_observe() -> None:
    with observe_lattice(tiny_model()) as found:
        logits(tiny_model(), plain(batch([2])))
    assert found == {}
    assert lattice_metrics(found) == {}


def test_metrics_pool_passes_and_processes() -> None:
    def seen(layer: int, *sums: list[float]) -> LayerObservation:
        return LayerObservation(layer, 0, torch.tensor(sums))

    found = {2: [seen(2, [1, 2, 0, 0], [1, 2, 3, 4]), seen(2, [1, 1, 1, 2])], 3: [seen(3, [1, 4, 0, 0])], 5: []}
    metrics = lattice_metrics(found)
    assert metrics == pytest.approx({"gate/2": 0.6, "cross_thread_attention/2": 4 / 6, "gate/3": 0.25})
    assert lattice_metrics(found, lambda sums: 2 * sums) == pytest.approx(metrics)
    with pytest.raises(ValueError, match="one layer"):
        pooled([*found[2], *found[3]])
    assert math.isnan(found[3][0].cross_thread_attention)
