"""What must also hold on an accelerator: `python -m pytest -m gpu`."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from lace.engine.engine import Engine
from lace.engine.reference import generate_reference
from lace.engine.sampling import SamplingParams
from lace.lattice.checkpoint import load
from lace.train.grpo import GRPOSettings, LatticeGRPO, Question
from lace.train.rewards import RewardWeights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
PROMPTS = ["Use 3, 7 and 12 to make 33", "Use 3, 7, 12 and 5 to make 58"]
PARAMS = [SamplingParams(threads=4, max_tokens=40, seed=n, grace=None) for n in range(2)]


def test_engine_matches_the_reference_and_the_processor() -> None:
    loaded = load("puzzles", dtype=torch.float32, device="cuda")
    found = Engine(loaded.model, loaded.tokenizer).generate(PROMPTS, PARAMS)
    tokens = [[thread.token_ids for thread in result.threads] for result in found]
    assert tokens == [
        generate_reference(loaded.model, loaded.tokenizer, prompt, params)
        for prompt, params in zip(PROMPTS, PARAMS, strict=True)
    ]
    processor = load("puzzles", dtype=torch.float32)
    on_processor = Engine(processor.model, processor.tokenizer).generate(PROMPTS, PARAMS)
    assert tokens == [[thread.token_ids for thread in result.threads] for result in on_processor]


def test_engine_runs_in_bfloat16() -> None:
    loaded = load("puzzles", dtype=torch.bfloat16, device="cuda")
    results = Engine(loaded.model, loaded.tokenizer).generate(PROMPTS, PARAMS)
    assert all(thread.token_ids for result in results for thread in result.threads)


def test_full_pass_is_finite_in_bfloat16() -> None:
    loaded = load("puzzles", dtype=torch.bfloat16, device="cuda")
    ids = torch.randint(4, 200, (4, 12), device="cuda")
    layout = {
        "steps": torch.arange(12, device="cuda").expand(4, 12),
        "thread_ids": torch.arange(1, 5, device="cuda"),
        "lattice_rows": torch.arange(4, device="cuda")[None],
    }
    out = loaded.model(input_ids=ids, **layout, use_cache=False).logits
    assert torch.isfinite(out).all()


def test_grpo_step_in_bfloat16(tmp_path: Path) -> None:
    """Decoding and learning take other kernels there, and yet see nearly the same probabilities."""
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
        bf16=True,
        rewards=RewardWeights(thread=1.0),
    )
    assert loaded.tokenizer is not None
    LatticeGRPO(loaded.model, loaded.tokenizer, Puzzles(), settings, tmp_path).train()
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["tokens"] > 0
    assert math.isfinite(line["loss"])
    assert line["logprob_gap"] < 0.5
    assert line["grad_norm"] > 0
    assert any(not torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
