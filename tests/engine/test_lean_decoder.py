"""The step in few operators against the model's own forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from lace.bench.operators import count_operators
from lace.engine.decode_step import DecodeStep, DecodeSteps, WholeModel
from lace.engine.engine import Engine
from lace.engine.lean_decoder import LeanDecoder
from lace.engine.sampling import SamplingParams
from lace.engine.step_input import StepInput
from lace.lattice.checkpoint import load
from lace.lattice.graft import lattice_off
from lace.native.build import SWITCH
from tiny import FAMILIES
from tiny_engine import PROMPTS, VARIED, new_model

LEAN = {"llama", "qwen2", "qwen3"}


@pytest.fixture(autouse=True)
def without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")


def decode_step(model: PreTrainedModel, *, lean: bool) -> DecodeStep:
    return DecodeSteps(model).now(lean=lean)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_known_families_go_lean(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """What they write is compared with the reference in test_engine, which takes the default, and here."""
    model = new_model(tokenizer, family)
    assert isinstance(decode_step(model, lean=True), LeanDecoder if family in LEAN else WholeModel)
    assert isinstance(decode_step(model, lean=False), WholeModel)
    found, expected = (Engine(model, tokenizer, lean=lean).generate(PROMPTS, VARIED) for lean in (True, False))
    for one, other in zip(found, expected, strict=True):
        assert [t.token_ids for t in one.threads] == [t.token_ids for t in other.threads]
        logprobs, others = ([p for t in result.threads for p in t.logprobs] for result in (one, other))
        assert logprobs == pytest.approx(others, abs=1e-4)


def test_biases_and_a_lattice_that_is_off(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, "llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp.down_proj):
            linear.bias = nn.Parameter(torch.randn(linear.out_features))
    params = SamplingParams(threads=4, max_tokens=12)
    with lattice_off(model):
        found, expected = (Engine(model, tokenizer, lean=lean).generate(PROMPTS[0], params) for lean in (True, False))
    assert [t.token_ids for t in found[0].threads] == [t.token_ids for t in expected[0].threads]


def test_other_layers_take_the_models_own_pass(tokenizer: PreTrainedTokenizerFast) -> None:
    class Adapted(nn.Linear):
        pass

    model = new_model(tokenizer)
    projection = model.model.layers[0].self_attn.q_proj
    model.model.layers[0].self_attn.q_proj = Adapted(projection.in_features, projection.out_features)
    assert isinstance(decode_step(model, lean=True), WholeModel)
    watched = new_model(tokenizer)
    hook = watched.model.layers[1].register_forward_hook(lambda module, args, output: None)
    assert isinstance(decode_step(watched, lean=True), WholeModel)
    hook.remove()
    assert isinstance(decode_step(watched, lean=True), LeanDecoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(decode_step(new_model(tokenizer), lean=True), WholeModel)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@torch.inference_mode()
def test_copied_weights_compute_the_same(
    dtype: torch.dtype, off: float, copied: bool, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor packs those in bfloat16; those of a model too large for that are read where they are."""
    monkeypatch.setattr("lace.engine.lean_decoder.COPIED_BELOW", 2**31 if copied else 0)
    model = new_model(tokenizer, "qwen3").to(dtype)
    ids = torch.arange(3, 18).view(3, 5)
    logits = []
    for lean in (True, False):
        cache = DynamicCache()
        model(ids, past_key_values=cache)
        step = decode_step(model, lean=lean)
        logits.append(step(StepInput(ids[:, 2], torch.full((3,), 5), cache, None, {})).float())
    assert logits[1].std() > 10 * off
    torch.testing.assert_close(*logits, rtol=0, atol=off)


def test_changed_weights_are_noticed(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    engine, params = Engine(model, tokenizer), SamplingParams(threads=2, max_tokens=12)
    engine.generate(PROMPTS[0], params)
    step = engine.decode_step()
    assert engine.decode_step() is step
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-2)
    assert engine.decode_step() is not step
    found, expected = (Engine(model, tokenizer).generate(PROMPTS[0], params), engine.generate(PROMPTS[0], params))
    assert [t.token_ids for t in found[0].threads] == [t.token_ids for t in expected[0].threads]


def test_few_operators() -> None:
    loaded = load("puzzles")
    lean, whole = (
        count_operators(Engine(loaded.model, loaded.tokenizer, lean=lean), 4, 20, "independent")
        for lean in (True, False)
    )
    assert lean.compute < 0.6 * whole.compute
