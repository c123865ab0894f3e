"""A graft is exact: until it is trained, and whenever it is off, the model is its base bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, Qwen3Config, StableLmConfig

from lace.lattice.config import LatticeConfig
from lace.lattice.graft import graft, lattice_layers, lattice_off, lattice_parameters
from tiny import SHAPE, VOCABULARY, awake_model, batch, logits, plain, tiny_config, tiny_model, wake


def _greedy(model: PreTrainedModel) -> list[list[int]]:
    prompt = torch.tensor([[0, 5, 9], [7, 3, 11]])
    mask = (prompt > 0).long()
    return model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=8, do_sample=False).tolist()


def test_fresh_graft_is_the_base_exactly(base: PreTrainedModel) -> None:
    given = batch([3, 2], prompts=[3, 5])
    before, text = logits(base, plain(given)), _greedy(base)
    grafted = graft(base, tiny_config())
    assert torch.equal(logits(grafted, given), before)
    assert torch.equal(logits(grafted, plain(given)), before)
    assert _greedy(grafted) == text


def test_lattice_off_restores_the_base_exactly(base: PreTrainedModel) -> None:
    given = batch([3, 2], prompts=[3, 5])
    before, text = logits(base, plain(given)), _greedy(base)
    grafted = wake(graft(base, tiny_config()))
    awake = logits(grafted, given)
    assert not torch.allclose(awake, before, atol=1e-3)
    with lattice_off(grafted):
        assert torch.equal(logits(grafted, given), before)
    assert torch.equal(logits(grafted, given), awake)
    assert torch.equal(logits(grafted, plain(given)), before)  # no layout given
    assert _greedy(grafted) == text


def test_lattice_off_is_undone_by_an_error() -> None:
    model = awake_model()
    with pytest.raises(RuntimeError), lattice_off(model):
        raise RuntimeError
    assert all(layer.enabled for layer in lattice_layers(model))


def test_lattices_are_submodules_of_the_chosen_layers(base: PreTrainedModel) -> None:
    own = {name for name, _ in base.named_parameters()}
    grafted = graft(base, tiny_config())
    names = [name for name, _ in lattice_parameters(grafted)]
    assert {name for name, _ in grafted.named_parameters()} - own == set(names)
    assert {name.split(".lattice.")[0] for name in names} == {"model.layers.2.self_attn"}


def test_listed_layers() -> None:
    model = graft(tiny_model(), tiny_config(layers=(0, 3)))
    carriers = [name for name, _ in model.named_modules() if name.endswith(".lattice")]
    assert carriers == ["model.layers.0.self_attn.lattice", "model.layers.3.self_attn.lattice"]


def test_model_without_o_proj_is_refused_by_name() -> None:
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="cannot graft model type 'gpt2'") as error:
        graft(gpt2, tiny_config())
    assert "\n" not in str(error.value)
    assert not hasattr(gpt2, "lattice_config")


def test_second_graft_is_refused() -> None:
    model = graft(tiny_model(), tiny_config())
    with pytest.raises(ValueError, match="carries a lattice already"):
        graft(model, tiny_config())


def test_failed_graft_leaves_the_model_alone() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"layers \[9\] do not exist"):
        graft(model, tiny_config(layers=(1, 9)))
    assert not lattice_layers(model)


@pytest.mark.parametrize("missing", ["steps", "thread_ids", "lattice_rows"])
def test_incomplete_layout_is_refused(missing: str) -> None:
    given = batch([2])
    del given[missing]
    with pytest.raises(ValueError, match=f"the thread layout lacks {missing}; give all of"):
        logits(awake_model(), given)


def test_bf16_runs(family: str) -> None:
    model = awake_model(family=family).to(torch.bfloat16)
    out = logits(model, batch([3, 2]))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    assert {p.dtype for _, p in lattice_parameters(model)} == {torch.bfloat16}


def test_graft_takes_the_dtype_of_its_layer() -> None:
    model = graft(tiny_model().to(torch.bfloat16), tiny_config())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_copy_of_a_grafted_model_stands_alone() -> None:
    model, given = awake_model(), batch([3])
    expected = logits(model, given)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, given), expected)
    wake(twin, seed=5)
    assert torch.equal(logits(model, given), expected)
    assert not torch.allclose(logits(twin, given), expected, atol=1e-3)


def test_gradient_checkpointing_gives_equal_gradients(family: str) -> None:
    given = batch([3, 2], prompts=[3, 5])
    labels = given["input_ids"].masked_fill(given["steps"] < 0, -100)

    def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
        model.train()(**given, labels=labels, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(awake_model(family=family))
    checkpointed = awake_model(family=family)
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(checkpointed)
    assert expected.keys() == found.keys()
    assert any(".lattice." in name and gradient.abs().max() > 0 for name, gradient in found.items())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_fresh_graft_learns() -> None:
    """With an output of zero, the gradient must still reach the output projection."""
    model, given = graft(tiny_model(), tiny_config()), batch([3])
    labels = given["input_ids"].masked_fill(given["steps"] < 0, -100)
    model(**given, labels=labels).loss.backward()
    assert all(layer.up_proj.weight.grad.abs().max() > 0 for layer in lattice_layers(model))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ({"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144}, 1.72e9),
        ({"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728}, 4.02e9),
    ],
)
def test_under_one_percent_of_new_parameters(shape: dict[str, int], size: float) -> None:
    config = Qwen3Config(
        **{**SHAPE, **shape}
        | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    before = sum(p.numel() for p in model.parameters())
    assert before == pytest.approx(size, rel=0.01)
    graft(model, LatticeConfig())
    new = sum(p.numel() for _, p in lattice_parameters(model))
    assert 0 < new / before < 0.01


def test_decoder_that_swallows_the_layout_is_an_error() -> None:
    """StableLM's layers do not pass unknown arguments on, so the threads would silently not read each other."""
    config = StableLmConfig(**{name: value for name, value in SHAPE.items() if name != "head_dim"})
    model = graft(AutoModelForCausalLM.from_config(config).eval(), tiny_config())
    with pytest.raises(ValueError, match="'stablelm' does not pass the thread layout on"):
        logits(model, batch([2]))
