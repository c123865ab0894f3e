"""Steps over buffers of fixed shape, here without a GPU to record them: they must be the reference's too."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lace.engine import static_step
from lace.engine.engine import Engine
from lace.engine.reference import generate_reference
from lace.engine.static_step import StaticStep, can_be_static
from tiny import FAMILIES
from tiny_engine import PROMPTS, VARIED, new_model

WINDOWED = {"gemma2", "gemma3_text", "mistral"}


@pytest.fixture(autouse=True)
def short_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run goes through several recordings."""
    monkeypatch.setattr(static_step, "REACH", 5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that were done this way."""
    done: list[int] = []
    usual = StaticStep.__call__

    def counted(self: StaticStep, tokens: list[int], steps: list[int], step: int) -> torch.Tensor:
        done.append(step)
        return usual(self, tokens, steps, step)

    monkeypatch.setattr(StaticStep, "__call__", counted)
    return done


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_matches_reference(family: str, lean: bool, tokenizer: PreTrainedTokenizerFast, calls: list[int]) -> None:
    """Rows end at different steps, and are dropped on the way."""
    model = new_model(tokenizer, family)
    results = Engine(model, tokenizer, static=True, lean=lean).generate(PROMPTS, VARIED)
    found = [[thread.token_ids for thread in result.threads] for result in results]
    assert found == [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]
    assert calls == ([] if family in WINDOWED else list(range(len(calls))))
    assert bool(calls) == (family not in WINDOWED)


@pytest.mark.parametrize(
    "settings",
    [
        {"visibility": "causal"},
        {"visibility": "causal", "read_self": True},
        {"read_self": True, "gate": "none"},
        {"horizon": 1},
        {"horizon": 4},
        {"horizon": 3, "visibility": "causal"},
        {"visibility": "same_step"},
        {"kind": "mlp"},
    ],
    ids=str,
)
def test_matches_reference_in_other_modes(
    settings: dict[str, object], tokenizer: PreTrainedTokenizerFast, calls: list[int]
) -> None:
    model = new_model(tokenizer, **settings)
    results = Engine(model, tokenizer, static=True).generate(PROMPTS, VARIED)
    found = [[thread.token_ids for thread in result.threads] for result in results]
    assert found == [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]
    assert bool(calls) == (settings.get("visibility") != "same_step")


def test_matches_reference_with_the_lattice_off(tokenizer: PreTrainedTokenizerFast, calls: list[int]) -> None:
    model = new_model(tokenizer)
    results = Engine(model, tokenizer, static=True).generate(PROMPTS, VARIED, strategy="independent")
    found = [[thread.token_ids for thread in result.threads] for result in results]
    assert found == [
        generate_reference(model, tokenizer, p, s, lattice=False) for p, s in zip(PROMPTS, VARIED, strict=True)
    ]
    assert calls


def test_other_ways_of_decoding_stay_as_they_are(tokenizer: PreTrainedTokenizerFast, calls: list[int]) -> None:
    engine = Engine(new_model(tokenizer), tokenizer, static=True)
    engine.generate(PROMPTS, VARIED[:1] * 3, strategy="swapped")
    with torch.autocast("cpu", torch.bfloat16):
        engine.generate(PROMPTS, VARIED)
        assert not can_be_static(engine.model, with_lattice=True)
    Engine(engine.model, tokenizer).generate(PROMPTS, VARIED)
    assert not calls
