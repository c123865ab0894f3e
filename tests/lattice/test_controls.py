"""The controls that the lattice's config makes: P-Match exchanges nothing, Bridge remembers nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Qwen3ForCausalLM

from lace.data.assemble import AssembledLattice
from lace.lattice.attention import LatticeAttention
from lace.lattice.checkpoint import load, save
from lace.lattice.config import LatticeConfig
from lace.lattice.graft import (
    graft,
    lattice_layers,
    lattice_off,
    lattice_parameters,
    new_lattice_cache,
    thread_gradients_cut,
)
from lace.lattice.mlp_control import MLPControl
from lace.lattice.size import lattice_size
from lace.train.sft import train_lattices
from tiny import VOCABULARY, awake_model, batch, logits, plain, tiny_config, tiny_model

PROMPT, STEPS = 3, 5
BRIDGE = {"visibility": "same_step", "thread_dims": 0}


@pytest.mark.parametrize("width", [512, 2048, 4096])  # of SDPA outputs: tiny, Qwen3-0.6B and 1.7B, Qwen3-4B
@pytest.mark.parametrize(
    "settings",
    [{}, {"thread_dims": 0, "time_dims": 64}, {"gate": "none"}, {"num_heads": 1}, {"low_dim": 64, "time_dims": 24}],
    ids=str,
)
def test_mlp_is_as_large_as_the_lattice_it_stands_for(width: int, settings: dict[str, object]) -> None:
    with torch.device("meta"):
        lattice = LatticeAttention(width, LatticeConfig(**settings), 0)
        mlp = MLPControl(width, LatticeConfig(**settings, kind="mlp"), 0)
    count = [sum(p.numel() for p in module.parameters()) for module in (mlp, lattice)]
    assert count[0] == pytest.approx(count[1], rel=0.005)


def test_mlp_of_the_shipped_models_shape_is_as_large() -> None:
    model = load("puzzles").model
    config = LatticeConfig(**{**model.lattice_config.to_dict(), "kind": "mlp"})
    base = Qwen3ForCausalLM(model.config)
    mlp = sum(p.numel() for _, p in lattice_parameters(graft(base, config)))
    assert mlp == pytest.approx(sum(p.numel() for _, p in lattice_parameters(model)), rel=0.005)


def test_fresh_mlp_is_the_base_exactly(base: PreTrainedModel) -> None:
    given = batch([3, 2], prompts=[3, 5])
    before = logits(base, plain(given))
    assert torch.equal(logits(graft(base, tiny_config(kind="mlp")), given), before)


def test_mlp_works_on_written_tokens_and_can_be_switched_off() -> None:
    model, given = awake_model(kind="mlp", layers=(3,)), batch([3], STEPS, [PROMPT])
    given["steps"][0, PROMPT + 2 :] = -1  # an ended thread
    with lattice_off(model):
        base = logits(model, given)
    assert torch.equal(logits(model, plain(given)), base)
    same = torch.isclose(logits(model, given), base).all(-1)
    assert torch.equal(same, given["steps"] < 0)


def test_mlp_exchanges_nothing() -> None:
    model, given = awake_model("causal", kind="mlp", read_self=True), batch([3, 2], STEPS, [PROMPT, PROMPT])
    before = logits(model, given)
    for row in range(5):
        changed = {**given, "input_ids": given["input_ids"].clone()}
        changed["input_ids"][row, PROMPT] = (changed["input_ids"][row, PROMPT] + 1) % VOCABULARY
        after = logits(model, changed)
        assert {n for n in range(5) if not torch.equal(before[n], after[n])} == {row}


def test_mlp_with_a_cache_equals_without_and_takes_no_room() -> None:
    model, given = awake_model(kind="mlp"), batch([2], STEPS, [PROMPT])
    cache = new_lattice_cache(model, 1, 2, PROMPT + STEPS)
    assert torch.equal(logits(model, given, lattice_cache=cache), logits(model, given))
    assert cache.keys.nbytes == 0
    size = lattice_size(model)
    assert (size.layers, size.lattice_bytes) == ([2], 0)
    assert size.parameters == sum(p.numel() for p in lattice_layers(model)[0].parameters())


def test_mlp_learns_from_the_start_whether_or_not_gradients_are_cut() -> None:
    given = batch([3], STEPS, [PROMPT])
    labels = given["input_ids"].masked_fill(given["steps"] < 0, -100)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = graft(tiny_model(), tiny_config(kind="mlp"))
        if found:
            with thread_gradients_cut(model):
                model(**given, labels=labels).loss.backward()
        else:
            model(**given, labels=labels).loss.backward()
        found.append(lattice_layers(model)[0].up_proj.weight.grad)
    assert found[0].abs().max() > 0
    assert torch.equal(*found)


@pytest.mark.parametrize("settings", [{"kind": "mlp"}, BRIDGE], ids=["p-match", "bridge"])
def test_save_and_load(settings: dict[str, object], tmp_path: Path) -> None:
    model, given = awake_model(**settings), batch([3, 2])
    save(model, tmp_path, whole=True)
    loaded = load(tmp_path).model
    assert torch.equal(logits(loaded, given), logits(model, given))
    assert type(lattice_layers(loaded)[0]) is (MLPControl if "kind" in settings else LatticeAttention)


def test_weights_of_a_lattice_are_refused_by_the_control(tmp_path: Path) -> None:
    save(awake_model(), tmp_path, whole=True)
    tiny_config(kind="mlp").save(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the lattice, first .*hidden_proj"):
        load(tmp_path)


class _Echoes(Dataset[AssembledLattice]):
    """Three threads that write the same random tokens, the second and third one step and two after the first."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> AssembledLattice:
        drawn = torch.randint(3, VOCABULARY, (8,), generator=torch.Generator().manual_seed(index % 4)).tolist()
        tokens = [[*[2] * late, *drawn] for late in range(3)]
        learned = [[True] * len(own) for own in tokens]
        return AssembledLattice([5, 6], [4, 9, 2], tokens, learned, [{}, {}, {}])


@pytest.mark.parametrize("settings", [{"kind": "mlp"}, BRIDGE, {"thread_dims": 0}], ids=str)
def test_controls_train(settings: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = graft(tiny_model(), tiny_config(**settings))
    before = {name: p.detach().clone() for name, p in lattice_parameters(model)}
    options = {"learning_rate": 5e-3, "warmup_steps": 1, "log_every": 1, "save_every": 1000}
    train_lattices(model, _Echoes(), 0, tmp_path, steps=12, lattices_per_step=2, **options)
    losses = [line["loss"] for line in map(json.loads, (tmp_path / "log.jsonl").open()) if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert all(not torch.equal(p, before[name]) for name, p in lattice_parameters(model))
