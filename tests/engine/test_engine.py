"""The engine against its slow reference, and every promise it makes about batches, seeds, stops and streams."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lace.engine.engine import Engine
from lace.engine.reference import generate_reference, generate_swapped_reference
from lace.engine.result import LatticeResult, TokenEvent
from lace.engine.sampling import SamplingParams
from tiny import FAMILIES, tiny_config
from tiny_engine import PROMPTS, VARIED, new_model


def token_ids(results: list[LatticeResult]) -> list[list[list[int]]]:
    return [[thread.token_ids for thread in result.threads] for result in results]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_matches_reference_token_for_token(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, family)
    found = token_ids(Engine(model, tokenizer).generate(PROMPTS, VARIED))
    assert found == [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]


@pytest.mark.parametrize("visibility", ["causal", "same_step"])
def test_matches_reference_in_other_modes(visibility: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, visibility=visibility, read_self=True)
    found = token_ids(Engine(model, tokenizer).generate(PROMPTS, VARIED))
    assert found == [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]


@pytest.mark.parametrize("visibility", ["strict", "causal"])
def test_horizon_matches_reference(visibility: str, tokenizer: PreTrainedTokenizerFast) -> None:
    models = [new_model(tokenizer, visibility=visibility, horizon=horizon) for horizon in (3, 0)]
    found, unbounded = (token_ids(Engine(model, tokenizer).generate(PROMPTS, VARIED)) for model in models)
    assert found == [generate_reference(models[0], tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]
    assert found != unbounded


def test_independent_is_the_reference_without_lattice(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    engine = Engine(model, tokenizer)
    found = token_ids(engine.generate(PROMPTS, VARIED, strategy="independent"))
    assert found == [
        generate_reference(model, tokenizer, p, s, lattice=False) for p, s in zip(PROMPTS, VARIED, strict=True)
    ]
    assert found != token_ids(engine.generate(PROMPTS, VARIED))


@pytest.mark.parametrize(
    "settings",
    [{"visibility": "same_step", "thread_dims": 0}, {"thread_dims": 0}, {"kind": "mlp"}],
    ids=["bridge", "no thread encoding", "p-match"],
)
def test_controls_match_reference(settings: dict[str, object], tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, **settings)
    engine = Engine(model, tokenizer)
    found = token_ids(engine.generate(PROMPTS, VARIED))
    assert found == [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]
    assert found != token_ids(engine.generate(PROMPTS, VARIED, strategy="independent"))


SWAPPED = [replace(VARIED[0], max_tokens=m, seed=seed) for m, seed in ((2, 1), (14, 2), (9, 3))]


@pytest.mark.parametrize(
    "settings",
    [{}, {"visibility": "causal", "read_self": True}, {"visibility": "same_step"}, {"layers": (1, 3)}, {"kind": "mlp"}],
    ids=str,
)
def test_swapped_matches_reference(settings: dict[str, object], tokenizer: PreTrainedTokenizerFast) -> None:
    """Although the first lattice, which the last one reads, ends long before it."""
    model = new_model(tokenizer, **settings)
    results = Engine(model, tokenizer).generate(PROMPTS, SWAPPED, strategy="swapped")
    assert token_ids(results) == generate_swapped_reference(model, tokenizer, PROMPTS, SWAPPED)
    assert {result.strategy for result in results} == {"swapped"}
    assert results[0].steps < results[2].steps


def test_swapped_lattices_share_their_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    usual = engine.generate(PROMPTS, SWAPPED)
    swapped = engine.generate(PROMPTS, SWAPPED, strategy="swapped")
    labels = [[thread.label for thread in result.threads] for result in swapped]
    assert labels == [[thread.label for thread in usual[0].threads]] * 3
    assert token_ids(swapped) != token_ids(usual)


def test_swapped_thread_reads_the_next_prompt_only(tokenizer: PreTrainedTokenizerFast) -> None:
    """The second prompt's threads read the third's, so that another third prompt changes what they say; the first's
    read the second's alone, in which the change shows no earlier than in its first sampled token."""
    engine = Engine(new_model(tokenizer, layers=(3,)), tokenizer)
    params = [replace(SWAPPED[1], max_tokens=1, seed=n) for n in range(3)]
    other = [*PROMPTS[:2], "Use 2, 4 and 19 to make 38"]
    logprobs = [
        [[thread.logprobs[0] for thread in result.threads] for result in engine.generate(p, params, strategy="swapped")]
        for p in (PROMPTS, other)
    ]
    assert logprobs[0][0] == pytest.approx(logprobs[1][0], abs=1e-5)
    assert all(abs(a - b) > 1e-3 for a, b in zip(logprobs[0][1], logprobs[1][1], strict=True))


@pytest.mark.parametrize(("prompts", "max_rows"), [(2, 1), (3, 1), (5, 1), (7, 9), (8, 9), (9, 100)])
def test_no_swapped_lattice_is_left_alone(prompts: int, max_rows: int, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer, max_rows=max_rows)
    params = SamplingParams(threads=3, max_tokens=2)
    lattices = engine._admit([f"Use {n + 1} and 2 to make 9" for n in range(prompts)], params, "swapped", lazy=True)
    batches = list(engine._batches(lattices, "swapped"))
    assert [lattice for batch in batches for lattice in batch] == lattices
    assert all(2 <= len(batch) <= max(3, max_rows // 3) for batch in batches)


def test_some_threads_end_before_others(tokenizer: PreTrainedTokenizerFast) -> None:
    """What the parity tests rest on: finished threads among running ones, in the same lattice and in others."""
    results = Engine(new_model(tokenizer), tokenizer).generate(PROMPTS, VARIED)
    reasons = [{thread.finish_reason for thread in result.threads} for result in results]
    assert any(len(reason) == 2 for reason in reasons)
    assert len({result.steps for result in results}) > 1


def test_fresh_graft_writes_the_base_models_greedy_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, fresh=True)
    model.lattice_config = tiny_config()  # no opening, so that the threads continue the bare prompt
    result = Engine(model, tokenizer).generate(PROMPTS[0], SamplingParams(threads=3, max_tokens=12, temperature=0))[0]
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    for thread in result.threads:
        assert thread.token_ids == expected[0, ids.shape[1] :].tolist()


def test_prompt_alone_equals_prompt_in_a_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    together = engine.generate(PROMPTS, VARIED)
    for prompt, params, result in zip(PROMPTS, VARIED, together, strict=True):
        assert token_ids(engine.generate(prompt, params)) == token_ids([result])


def test_batches_of_few_rows_equal_one_large_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer)
    large = Engine(model, tokenizer).generate(PROMPTS, VARIED)
    assert token_ids(Engine(model, tokenizer, max_rows=4).generate(PROMPTS, VARIED)) == token_ids(large)


def test_seed_decides_labels_and_draws(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    first, again, other = (
        engine.generate(PROMPTS[0], SamplingParams(threads=4, max_tokens=8, seed=seed))[0] for seed in (5, 5, 6)
    )
    assert first.threads == again.threads
    assert [t.label for t in first.threads] != [t.label for t in other.threads]
    assert len({t.label for t in first.threads}) == 4


def test_more_threads_than_thread_ids_were_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer, max_thread_id=4), tokenizer)
    result = engine.generate(PROMPTS[0], SamplingParams(threads=9, max_tokens=3))[0]
    assert sorted(thread.label for thread in result.threads) == list(range(1, 10))


def test_logprobs_agree_with_a_full_forward_pass(tokenizer: PreTrainedTokenizerFast) -> None:
    """Sampled and recomputed in the same layout: what on-policy training rests on."""
    model = new_model(tokenizer)
    result = Engine(model, tokenizer).generate(PROMPTS[0], VARIED[0])[0]
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    rows = []
    for thread in result.threads:
        opening = tokenizer(f"Thread {thread.label}:", add_special_tokens=False)["input_ids"]
        rows.append((len(prompt) + len(opening), [*prompt, *opening, *thread.token_ids]))
    width = max(len(row) for _, row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for _, row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for _, row in rows])
    steps = torch.where(mask == 1, torch.arange(width) - len(prompt), -1).clamp(min=-1)
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            steps=steps,
            thread_ids=torch.tensor([thread.label for thread in result.threads]),
            lattice_rows=torch.arange(len(rows))[None],
        ).logits.log_softmax(-1)
    for n, (start, row) in enumerate(rows):
        recomputed = [float(logits[n, place - 1, row[place]]) for place in range(start, len(row))]
        assert result.threads[n].logprobs == pytest.approx(recomputed, abs=1e-4)


def test_stream_tells_what_generate_returns(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    expected = engine.generate(PROMPTS, VARIED)
    events = list(engine.generate_stream(PROMPTS, VARIED))
    results = {event.prompt: event for event in events if isinstance(event, LatticeResult)}
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    for index, result in enumerate(expected):
        assert results[result.prompt].threads == result.threads
        for thread in result.threads:
            own = [e for e in tokens if (e.prompt, e.thread) == (index, thread.index)]
            assert [e.token_id for e in own if e.logprob is not None] == thread.token_ids
            assert "".join(e.text for e in own if e.logprob is not None).strip() == thread.text
            assert "".join(e.text for e in own if e.logprob is None).split() == ["Thread", str(thread.label), ":"]
            assert [e.finish_reason for e in own if e.finish_reason] == [thread.finish_reason]
            assert own[-1].finish_reason == thread.finish_reason


def test_every_step_has_its_time(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    expected = engine.generate(PROMPTS, VARIED)
    began, slept = time.perf_counter(), 0.0
    results = []
    for event in engine.generate_stream(PROMPTS, VARIED):
        if isinstance(event, LatticeResult):
            results.append(event)
        elif slept < 0.3:
            time.sleep(0.05)  # a slow reader takes none of the decoding's time
            slept += 0.05
    passed = time.perf_counter() - began
    for result in [*expected, *results]:
        assert len(result.step_seconds) == result.steps
        assert result.step_seconds[-1] == result.seconds
        assert all(before < after for before, after in pairwise([0.0, *result.step_seconds]))
    assert max(result.seconds for result in results) < passed - 0.3
    assert len({result.steps for result in results}) > 1  # whoever ends before others has fewer


def test_stop_text_ends_a_thread_and_is_cut_off(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    free = engine.generate(PROMPTS[0], SamplingParams(threads=2, max_tokens=12, seed=4, grace=None))[0]
    words = max((thread.text for thread in free.threads), key=len).split()
    stop = " ".join(words[2:4])  # spans two tokens
    params = SamplingParams(threads=2, max_tokens=12, seed=4, grace=None, stop=(stop,))
    events = list(engine.generate_stream(PROMPTS[0], params))
    result = events[-1]
    assert isinstance(result, LatticeResult)
    stopped = [thread for thread in result.threads if thread.finish_reason == "stop"]
    assert stopped
    for thread in result.threads:
        assert stop not in thread.text
        streamed = "".join(
            e.text for e in events if isinstance(e, TokenEvent) and e.thread == thread.index and e.logprob is not None
        )
        assert streamed.strip() == thread.text


def test_caches_are_written_in_place(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of the main cache and of the lattice cache keep their place while every thread is running."""
    from lace.engine import engine as module

    seen: set[tuple[int, int]] = set()
    advance = module._DecodingState.advance

    def spy(state: module._DecodingState, tokens: list[int], step: int) -> None:
        advance(state, tokens, step)
        assert state.lattice_cache is not None
        seen.add((state.cache.layers[0].keys.data_ptr(), state.lattice_cache.keys.data_ptr()))

    monkeypatch.setattr(module._DecodingState, "advance", spy)
    Engine(new_model(tokenizer), tokenizer).generate(PROMPTS[0], SamplingParams(threads=4, max_tokens=8))
    assert len(seen) == 1


def test_finished_rows_are_freed(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    from lace.engine import engine as module

    rows: list[int] = []
    advance = module._DecodingState.advance

    def spy(state: module._DecodingState, tokens: list[int], step: int) -> None:
        advance(state, tokens, step)
        rows.append(state.logits_RV.shape[0])

    monkeypatch.setattr(module._DecodingState, "advance", spy)
    short, long = (SamplingParams(threads=4, max_tokens=m, grace=None) for m in (2, 12))
    Engine(new_model(tokenizer), tokenizer).generate([PROMPTS[0], PROMPTS[1]], [short, long])
    assert rows[0] == 8
    assert rows[-1] <= 4


def test_runs_in_bfloat16(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer).to(torch.bfloat16)
    result = Engine(model, tokenizer).generate(PROMPTS[0], VARIED[0])[0]
    assert all(thread.token_ids for thread in result.threads)


def test_plain_model_generates_independent_threads(tokenizer: PreTrainedTokenizerFast) -> None:
    config = copy.deepcopy(FAMILIES["llama"])
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    engine = Engine(model, tokenizer)
    found = engine.generate(PROMPTS[0], SamplingParams(threads=2, max_tokens=5))[0]
    assert [len(thread.token_ids) for thread in found.threads] == [5, 5]
    with pytest.raises(ValueError, match="swapped needs a model with a lattice"):
        engine.generate(PROMPTS, strategy="swapped")


BAD_CALLS = {
    "is empty": ([" "], None, "lace"),
    "strategy must be": (PROMPTS, None, "chorus"),
    "too long": (PROMPTS[:1], SamplingParams(max_tokens=4000), "lace"),
    "as many sampling parameters": (PROMPTS, VARIED[:2], "lace"),
    "at least two prompts": (PROMPTS[:1], None, "swapped"),
    "all different": ([PROMPTS[0], PROMPTS[0]], None, "swapped"),
    r"same number of threads for all prompts, not \[1, 3, 5\]": (PROMPTS, VARIED, "swapped"),
}


@pytest.mark.parametrize("message", sorted(BAD_CALLS))
def test_bad_calls_raise_one_line(message: str, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts, params, strategy = BAD_CALLS[message]
    engine = Engine(new_model(tokenizer), tokenizer)
    for call in (engine.generate, engine.generate_stream):
        with pytest.raises(ValueError, match=message) as error:
            call(prompts, params, strategy=strategy)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0}, {"threads": 257}, {"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")},
        {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"seed": -1}, {"stop": ("",)}, {"grace": -1},
    ],
)  # fmt: skip
def test_bad_sampling_parameters_name_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))) as error:
        SamplingParams(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
