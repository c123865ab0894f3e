"""A whole step by compiled code against the model's own forward pass."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from lace.data.collate import IGNORED, LatticeCollator
from lace.engine import native_decoder
from lace.engine.cache import RowCache
from lace.engine.decode_step import DecodeSteps, WholeModel
from lace.engine.engine import Engine
from lace.engine.lean_decoder import LeanDecoder
from lace.engine.native_decoder import NativeDecoder
from lace.engine.reference import generate_reference
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams
from lace.engine.scheduler import Scheduler
from lace.engine.step_input import StepInput
from lace.lattice.graft import LAYOUT_ARGUMENTS, graft, lattice_layers, lattice_off
from lace.native.build import SWITCH
from lace.train.grpo import as_lattice
from lace.train.policy_loss import token_logprobs
from tiny import FAMILIES, tiny_config, wake
from tiny_engine import PROMPTS, VARIED, new_model

pytestmark = pytest.mark.usefixtures("compiled")

PLAIN = {"hidden_size": 48, "intermediate_size": 80}
SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "heads of 16, two queries for a key": ("llama", {"head_dim": 16}),
    "heads of 32": ("qwen3", {"head_dim": 32, "num_key_value_heads": 4}),
    "heads of 48, four queries for a key": ("qwen3", {"head_dim": 48, "num_key_value_heads": 1}),
    "heads of 64, one": ("qwen2", {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}),
    "heads of 128": ("qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
    "odd widths": ("qwen3", {"head_dim": 16, "hidden_size": 40, "intermediate_size": 57}),
}


def shaped_model(name: str, tokenizer: PreTrainedTokenizerFast, **settings: object) -> PreTrainedModel:
    """A random model, as `new_model` makes them, of another shape, and with norms that are not all ones."""
    family, shape = SHAPES[name]
    config = copy.deepcopy(FAMILIES[family])
    for key, value in {**PLAIN, **shape, "vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}.items():
        setattr(config, key, value)
    if family == "qwen2":
        config.head_dim = 64
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.get_output_embeddings().weight.data.mul_(10)
    model.generation_config.eos_token_id = list(range(len(tokenizer) // 7))
    return wake(graft(model, tiny_config(opening="Thread {label}:", **settings)))


def assert_same(found: list[LatticeResult], expected: list[LatticeResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert [t.token_ids for t in one.threads] == [t.token_ids for t in other.threads]
        logprobs, others = ([p for t in result.threads for p in t.logprobs] for result in (one, other))
        assert logprobs == pytest.approx(others, abs=2e-4)


@pytest.mark.parametrize("strategy", ["lace", "independent"])
@pytest.mark.parametrize("name", SHAPES)
def test_writes_what_the_model_writes(name: str, strategy: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """With prompts of several lengths, and threads that end one after the other."""
    model = shaped_model(name, tokenizer)
    engine = Engine(model, tokenizer)
    assert isinstance(engine.decode_step(), NativeDecoder)
    found = engine.generate(PROMPTS, VARIED, strategy=strategy)  # type: ignore[arg-type]
    engine.lean = False
    assert_same(found, engine.generate(PROMPTS, VARIED, strategy=strategy))  # type: ignore[arg-type]
    assert len({len(t.token_ids) for result in found for t in result.threads}) > 2


@pytest.mark.parametrize("settings", [{}, {"visibility": "causal", "horizon": 4}, {"layers": [1, 3]}], ids=str)
def test_lattices_of_all_kinds(settings: dict[str, object], tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, **settings)
    expected = [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]
    engine = Engine(model, tokenizer)
    assert isinstance(engine.decode_step(), NativeDecoder)
    found = [[thread.token_ids for thread in result.threads] for result in engine.generate(PROMPTS, VARIED)]
    assert found == expected
    lattice_layers(model)[0].enabled = False
    found_less = engine.generate(PROMPTS, VARIED)
    engine.lean = False
    assert_same(found_less, engine.generate(PROMPTS, VARIED))
    with lattice_off(model):
        found_off = engine.generate(PROMPTS, VARIED)
        engine.lean = True
        assert_same(engine.generate(PROMPTS, VARIED), found_off)


def test_biases(tokenizer: PreTrainedTokenizerFast) -> None:
    model = shaped_model("heads of 32", tokenizer)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            linear.bias = nn.Parameter(torch.randn(linear.out_features))
    model.lm_head.bias = nn.Parameter(torch.randn(model.lm_head.out_features))
    engine = Engine(model, tokenizer)
    found = engine.generate(PROMPTS, VARIED)
    engine.lean = False
    assert_same(found, engine.generate(PROMPTS, VARIED))


@pytest.mark.usefixtures("whether_by_pairs")
@pytest.mark.parametrize("strategy", ["lace", "independent"])
@pytest.mark.parametrize("name", ["heads of 32", "heads of 48, four queries for a key", "odd widths"])
def test_bfloat16_is_rounded_less_than_by_operators(
    name: str, strategy: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities of what was written, against the same weights in float32 over the whole text at once."""
    model = shaped_model(name, tokenizer).bfloat16()
    exact = copy.deepcopy(model).float()
    collate = LatticeCollator(0, len(tokenizer))
    errors = []
    for switch, kind in (("1", NativeDecoder), ("0", LeanDecoder)):
        monkeypatch.setenv(SWITCH, switch)
        engine, gaps = Engine(model, tokenizer), []
        assert isinstance(engine.decode_step(), kind)
        for result in engine.generate(PROMPTS, VARIED, strategy=strategy):  # type: ignore[arg-type]
            batch = collate([as_lattice(result, tokenizer, "Thread {label}:")])
            learned = batch.pop("labels")[:, 1:] != IGNORED
            unused = ("choice_places", "choice_probabilities", *(LAYOUT_ARGUMENTS if strategy != "lace" else ()))
            given = {key: value for key, value in batch.items() if key not in unused}
            with torch.no_grad():
                logprobs = token_logprobs(exact(**given, use_cache=False).logits, batch["input_ids"])[learned]
            gaps.append(logprobs - torch.tensor([p for thread in result.threads for p in thread.logprobs]))
        errors.append(torch.cat(gaps).abs().mean())
    assert errors[0] < errors[1]
    assert errors[0] < 0.05


def finished(scheduler: Scheduler, handle: int, steps: int = 10_000) -> LatticeResult:
    for _ in range(steps):
        for other, event in scheduler.step():
            if other == handle and isinstance(event, LatticeResult):
                return event
    raise AssertionError("it has not ended")


@pytest.mark.parametrize("joins", [0, 3, 7])
def test_others_change_no_bit(joins: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every log-probability of a request is the same number alone and among others that came before it, of other
    lengths and widths, some of whom leave."""
    model = shaped_model("heads of 32", tokenizer)
    params = SamplingParams(threads=3, max_tokens=40, seed=5, grace=None)
    alone = Scheduler(Engine(model, tokenizer))
    expected = finished(alone, alone.add(alone.engine.new_lattice(PROMPTS[1], params)))
    busy = Scheduler(Engine(model, tokenizer))
    for n, (prompt, others) in enumerate(
        zip([PROMPTS[0], PROMPTS[2], PROMPTS[1]] * 2, [*VARIED, *VARIED], strict=True)
    ):
        busy.add(busy.engine.new_lattice(prompt, others, "independent" if n == 4 else "lace"))
    for _ in range(joins):
        busy.step()
    found = finished(busy, busy.add(busy.engine.new_lattice(PROMPTS[1], params)))
    assert isinstance(busy.decode, NativeDecoder)
    assert [t.token_ids for t in found.threads] == [t.token_ids for t in expected.threads]
    assert [t.logprobs for t in found.threads] == [t.logprobs for t in expected.threads]


def test_long_contexts_and_many_rows(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns than a vector, more rows than a chunk, and positions beyond those whose angles are made at once."""
    model = shaped_model("heads of 32", tokenizer)
    monkeypatch.setattr(native_decoder, "POSITIONS", 64)
    params = SamplingParams(threads=37, max_tokens=60, seed=1, temperature=0, grace=None)
    model.generation_config.eos_token_id = None
    prompt = " ".join(PROMPTS)
    engine = Engine(model, tokenizer)
    native_decoder_step = engine.decode_step()
    (found,) = engine.generate(prompt, params)
    assert isinstance(native_decoder_step, NativeDecoder)
    assert len(native_decoder_step.angles[0]) > native_decoder.POSITIONS
    engine.lean = False
    (expected,) = engine.generate(prompt, params)
    assert [t.token_ids[:40] for t in found.threads] == [t.token_ids[:40] for t in expected.threads]
    for one, other in zip(found.threads, expected.threads, strict=True):
        assert one.logprobs[:40] == pytest.approx(other.logprobs[:40], abs=2e-4)


def _share_out(_: int) -> None:
    made = []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES["qwen3"])).eval()
        ids = torch.arange(3, 53).view(50, 1)
        with torch.inference_mode():
            prefill = DynamicCache()
            model(ids[:1].expand(1, 20), past_key_values=prefill)
            cache = RowCache(prefill, torch.zeros(50, dtype=torch.long), 24)
            step = DecodeSteps(model).now()
            assert isinstance(step, NativeDecoder)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(native_decoder, "POSITIONS", 32)
                made.append(step(StepInput(ids[:, 0], torch.full((50,), 20), cache, None, {})))
    assert torch.equal(*made)


def test_threads_of_the_processor_change_no_bit(openmp: None) -> None:
    torch.multiprocessing.spawn(_share_out)


def test_what_compiled_code_cannot_do_goes_by_operators(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model(tokenizer)
    steps = DecodeSteps(model)
    made = steps.now()
    assert isinstance(made, NativeDecoder)
    assert steps.now() is made
    assert isinstance(steps.now(lean=False), WholeModel)
    assert isinstance(DecodeSteps(new_model(tokenizer, "llama")).now(), LeanDecoder)  # heads of 8 dimensions
    assert isinstance(DecodeSteps(new_model(tokenizer).half()).now(), LeanDecoder)
    assert isinstance(DecodeSteps(new_model(tokenizer, kind="mlp")).now(), LeanDecoder)
    monkeypatch.setenv(SWITCH, "0")
    assert isinstance(steps.now(), LeanDecoder)
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr("lace.engine.lean_decoder.COPIED_BELOW", 1000)
    assert isinstance(steps.now(), LeanDecoder)


def test_other_caches_and_watched_lattices_go_by_operators(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    ids, logits = torch.arange(3, 18).view(3, 5), []
    with torch.inference_mode():
        for lean in (True, False):
            cache = DynamicCache()
            model(ids, past_key_values=cache)
            given = StepInput(ids[:, 2], torch.full((3,), 5), cache, None, {})
            logits.append(DecodeSteps(model).now(lean=lean)(given))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    engine, params = Engine(model, tokenizer), SamplingParams(threads=3, max_tokens=9, grace=None)
    step = engine.decode_step()
    (before,) = engine.generate(PROMPTS[0], params)
    seen: list[object] = []
    hook = lattice_layers(model)[0].register_forward_hook(lambda *_: seen.append(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lace.engine.lean_decoder.is_watched", lambda model: False)
        assert engine.decode_step() is step
        assert_same(engine.generate(PROMPTS[0], params), [before])
    hook.remove()
    assert len(seen) > 3  # in steps as well as before them


def test_caches_do_not_outlive_their_lattices(tokenizer: PreTrainedTokenizerFast) -> None:
    def caches() -> int:
        gc.collect()
        return sum(type(x) is torch.Tensor and x.ndim == 4 for x in gc.get_objects())

    engine, before = Engine(new_model(tokenizer), tokenizer), caches()
    assert isinstance(engine.decode_step(), NativeDecoder)
    events = engine.generate_stream(PROMPTS, VARIED)
    next(events)
    next(event for event in events if isinstance(event, LatticeResult))
    assert caches() >= before + 2 * len(engine.model.model.layers)
    list(events)
    assert caches() == before


def test_changed_weights_are_noticed(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    engine, params = Engine(model, tokenizer), SamplingParams(threads=2, max_tokens=12)
    engine.generate(PROMPTS[0], params)
    with torch.no_grad():
        lattice_layers(model)[0].up_proj.weight.mul_(-2)
        model.model.layers[0].mlp.up_proj.weight.mul_(-2)
    found = engine.generate(PROMPTS[0], params)
    engine.lean = False
    assert_same(found, engine.generate(PROMPTS[0], params))


def test_tokens_that_cannot_be_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    step, ids = DecodeSteps(model).now(), torch.arange(3, 18).view(3, 5)
    for token, position in ((len(tokenizer), 5), (-1, 5), (3, -1)):
        with torch.inference_mode():
            prefill = DynamicCache()
            model(ids, past_key_values=prefill)
            cache = RowCache(prefill, torch.arange(3), 8)
            with pytest.raises(IndexError, match="no such tokens or positions"):
                step(StepInput(torch.tensor([3, token, 3]), torch.tensor([5, position, 5]), cache, None, {}))


def test_two_host_threads_may_use_one_engine(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one step reads by address, another does not free."""
    monkeypatch.setattr(native_decoder, "POSITIONS", 4)
    engine = Engine(new_model(tokenizer), tokenizer)
    assert isinstance(engine.decode_step(), NativeDecoder)
    expected = [engine.generate(prompt, VARIED[0]) for prompt in PROMPTS]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            found = list(pool.map(lambda prompt: engine.generate(prompt, VARIED[0]), PROMPTS))
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other)


def test_shapes_that_compiled_code_does_not_know_go_by_operators(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    mlp = model.model.layers[1].mlp
    for name, size in (("gate_proj", (16, 32)), ("up_proj", (16, 32)), ("down_proj", (32, 16))):
        setattr(mlp, name, nn.Linear(size[1], size[0], bias=False))
    assert isinstance(DecodeSteps(model).now(), LeanDecoder)
    model = new_model(tokenizer)
    model.lm_head = nn.Linear(32, len(tokenizer) + 7, bias=False)
    assert isinstance(DecodeSteps(model).now(), LeanDecoder)


def test_what_is_given_may_lie_anyhow(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides, types of the mask, and whatever the default type of tensors is."""
    model, ids = new_model(tokenizer), torch.arange(3, 18).view(3, 5)
    step, made = DecodeSteps(model).now(), []
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, :2] = 0
    tokens = torch.tensor([[7, 0], [8, 0], [9, 0]])
    plain = tokens[:, 0].contiguous(), torch.full((3,), 5), mask
    for given in (plain, (tokens[:, 0], plain[1].int(), mask.bool()), (*plain[:2], mask.t().contiguous().t())):
        with torch.inference_mode():
            prefill = DynamicCache()
            model(ids, past_key_values=prefill)
            cache = RowCache(prefill, torch.arange(3), 8)
            torch.set_default_dtype(torch.bfloat16)
            try:
                made.append(step(StepInput(given[0], given[1], cache, given[2], {})))
            finally:
                torch.set_default_dtype(torch.float32)
    assert made[0].dtype == torch.float32
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
