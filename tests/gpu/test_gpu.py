"""What must also hold on an accelerator: `python -m pytest -m gpu`."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lace.engine import static_step
from lace.engine.engine import Engine
from lace.engine.parity import compare
from lace.engine.reference import generate_reference
from lace.engine.result import LatticeResult, Strategy
from lace.engine.sampling import SamplingParams
from lace.engine.scheduler import Scheduler
from lace.engine.threads import opening_ids
from lace.lattice.checkpoint import load
from tiny import awake_model, batch
from tiny_engine import PROMPTS, VARIED, new_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
PARAMS = [SamplingParams(threads=n, max_tokens=30, seed=n, grace=None) for n in (4, 2, 8)]
STATIC = pytest.mark.parametrize("static", [True, False], ids=["recorded", "not recorded"])
LEAN = pytest.mark.parametrize("lean", [True, False], ids=["lean", "whole model"])


def shipped(dtype: torch.dtype, *, static: bool = False, lean: bool = True) -> Engine:
    loaded = load("puzzles", dtype=dtype, device="cuda")
    return Engine(loaded.model, loaded.tokenizer, static=static, lean=lean)


def token_ids(result: LatticeResult) -> list[list[int]]:
    return [thread.token_ids for thread in result.threads]


def assert_same(engine: Engine, place: int, one: list[list[int]], other: list[list[int]], strategy: Strategy) -> None:
    """The same tokens, or others where a draw falls on the border between two and rounding decides."""
    parting = compare(engine, PROMPTS[place], PARAMS[place], one, other, strategy)
    assert parting is None or parting.by_rounding, parting


@STATIC
@pytest.mark.parametrize("strategy", ["lace", "independent"])
def test_engine_matches_the_reference_and_the_processor(strategy: Strategy, static: bool) -> None:
    engine = shipped(torch.float32, static=static)
    loaded = load("puzzles", dtype=torch.float32)
    processor = Engine(loaded.model, loaded.tokenizer).generate(PROMPTS, PARAMS, strategy=strategy)
    for place, found in enumerate(engine.generate(PROMPTS, PARAMS, strategy=strategy)):
        given = engine.model, engine.tokenizer, PROMPTS[place], PARAMS[place]
        expected = generate_reference(*given, lattice=strategy == "lace")
        assert_same(engine, place, token_ids(found), expected, strategy)
        assert_same(engine, place, token_ids(found), token_ids(processor[place]), strategy)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "mistral"])
def test_families_match_the_processor(
    family: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows end at different steps and are dropped on the way, and a run goes through several recordings."""
    monkeypatch.setattr(static_step, "REACH", 7)
    model = new_model(tokenizer, family)
    expected = [token_ids(result) for result in Engine(model, tokenizer).generate(PROMPTS, VARIED)]
    found = Engine(model.to("cuda"), tokenizer).generate(PROMPTS, VARIED)
    assert [token_ids(result) for result in found] == expected


@LEAN
@STATIC
def test_sampled_probabilities_are_those_of_a_full_pass_in_bfloat16(static: bool, lean: bool) -> None:
    """Decoding takes other kernels than a full pass, and yet sees nearly the same probabilities."""
    engine = shipped(torch.bfloat16, static=static, lean=lean)
    for result in engine.generate(PROMPTS, PARAMS):
        gaps = (sampled(result) - recomputed(engine, result)).abs()
        assert gaps.median() < 0.02
        assert gaps.max() < 1


@LEAN
@STATIC
def test_sampled_probabilities_are_those_of_a_full_pass(static: bool, lean: bool) -> None:
    engine = shipped(torch.float32, static=static, lean=lean)
    for result in engine.generate(PROMPTS, PARAMS):
        assert (sampled(result) - recomputed(engine, result)).abs().max() < 1e-3


def sampled(result: LatticeResult) -> torch.Tensor:
    return torch.tensor([p for thread in result.threads for p in thread.logprobs])


@torch.inference_mode()
def recomputed(engine: Engine, result: LatticeResult) -> torch.Tensor:
    """Log-probabilities of all sampled tokens, from one pass over the whole lattice."""
    prompt = engine.tokenizer(result.prompt)["input_ids"]
    openings = [opening_ids(engine.tokenizer, engine.config.opening, thread.label) for thread in result.threads]
    written = [opening + thread.token_ids for opening, thread in zip(openings, result.threads, strict=True)]
    width = max(map(len, written))
    ids_RT = torch.tensor([[*prompt, *own, *[0] * (width - len(own))] for own in written])
    steps_RT = torch.tensor([[-1] * len(prompt) + list(range(len(own))) + [-1] * (width - len(own)) for own in written])
    out = engine.model(
        input_ids=ids_RT.cuda(),
        steps=steps_RT.cuda(),
        thread_ids=torch.tensor([thread.label for thread in result.threads], device="cuda"),
        lattice_rows=torch.arange(len(written), device="cuda")[None],
        use_cache=False,
    )
    logprobs_RT = out.logits[:, :-1].float().log_softmax(-1).cpu().gather(2, ids_RT[:, 1:, None])[..., 0]
    starts = [len(prompt) + len(opening) - 1 for opening in openings]
    return torch.cat(
        [
            logprobs_T[start : start + len(thread.token_ids)]
            for logprobs_T, start, thread in zip(logprobs_RT, starts, result.threads, strict=True)
        ]
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_pass_and_gradients_are_those_of_the_processor(family: str) -> None:
    model, given = awake_model(family=family), batch([3, 2])
    expected, own = outputs_and_gradients(model, given)
    found, other = outputs_and_gradients(
        awake_model(family=family).to("cuda"), {name: value.to("cuda") for name, value in given.items()}
    )
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    for name, gradient in own.items():
        torch.testing.assert_close(other[name], gradient, atol=1e-3, rtol=1e-2, msg=name)


def outputs_and_gradients(
    model: PreTrainedModel, given: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(**given, use_cache=False).logits
    logits.float().log_softmax(-1)[..., 3].mean().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().cpu(), gradients


def test_continuous_batches_match_the_engine() -> None:
    engine = shipped(torch.float32, static=False)
    scheduler = Scheduler(engine)
    lattices = [engine.new_lattice(p, s, lazy=True) for p, s in zip(PROMPTS, PARAMS, strict=True)]
    for lattice in lattices:
        scheduler.add(lattice)
        scheduler.step()
    while any(lattice.running for lattice in lattices):
        scheduler.step()
    for place, expected in enumerate(engine.generate(PROMPTS, PARAMS)):
        assert_same(engine, place, token_ids(lattices[place].result()), token_ids(expected), "lace")


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_supervised_steps_lower_the_loss(bf16: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from lace.data.puzzle_mixture import PuzzleLattices, PuzzleMixture
    from lace.train.sft import train_lattices

    data = PuzzleLattices(PuzzleMixture(coordinated=True, max_threads=3, four_numbers=0.0), tokenizer, 6)
    train_lattices(
        new_model(tokenizer, "qwen3").to("cuda"),
        data,
        tokenizer.pad_token_id,
        tmp_path,
        steps=12,
        lattices_per_step=2,
        learning_rate=5e-3,
        warmup_steps=1,
        log_every=1,
        save_every=1000,
        bf16=bf16,
    )
    losses = [line["loss"] for line in map(json.loads, (tmp_path / "log.jsonl").open()) if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_grpo_learns_from_what_it_sampled(bf16: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of the trainer before
    from lace.train.grpo import GRPOSettings, LatticeGRPO, Question
    from lace.train.rewards import RewardWeights

    loaded = load("puzzles", dtype=torch.float32, device="cuda")
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    coin = random.Random(0)

    class Puzzles:
        def __getitem__(self, index: int) -> Question:
            return Question(PROMPTS[index % 2], lambda answer: coin.random() < 0.5)  # so there is something to learn

    settings = GRPOSettings(
        steps=1,
        questions_per_step=2,
        learning_rate=1e-3,
        warmup_steps=1,
        bf16=bf16,
        rewards=RewardWeights(thread=1.0),
    )
    assert loaded.tokenizer is not None
    LatticeGRPO(loaded.model, loaded.tokenizer, Puzzles(), settings, tmp_path).train()
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["tokens"] > 0
    assert math.isfinite(line["loss"])
    assert line["logprob_gap"] < (1 if bf16 else 1e-3)
    assert line["grad_norm"] > 0
    assert any(not torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
