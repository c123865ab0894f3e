"""What must also hold on an accelerator: `python -m pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from lace.engine.engine import Engine
from lace.engine.reference import generate_reference
from lace.engine.sampling import SamplingParams
from lace.lattice.checkpoint import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
PROMPTS = ["Use 3, 7 and 12 to make 33", "Use 3, 7, 12 and 5 to make 58"]
PARAMS = [SamplingParams(threads=4, max_tokens=40, seed=n, grace=None) for n in range(2)]


def test_engine_matches_the_reference_and_the_processor() -> None:
    loaded = load("countdown", dtype=torch.float32, device="cuda")
    found = Engine(loaded.model, loaded.tokenizer).generate(PROMPTS, PARAMS)
    tokens = [[thread.token_ids for thread in result.threads] for result in found]
    assert tokens == [
        generate_reference(loaded.model, loaded.tokenizer, prompt, params)
        for prompt, params in zip(PROMPTS, PARAMS, strict=True)
    ]
    processor = load("countdown", dtype=torch.float32)
    on_processor = Engine(processor.model, processor.tokenizer).generate(PROMPTS, PARAMS)
    assert tokens == [[thread.token_ids for thread in result.threads] for result in on_processor]


def test_engine_runs_in_bfloat16() -> None:
    loaded = load("countdown", dtype=torch.bfloat16, device="cuda")
    results = Engine(loaded.model, loaded.tokenizer).generate(PROMPTS, PARAMS)
    assert all(thread.token_ids for result in results for thread in result.threads)


def test_full_pass_is_finite_in_bfloat16() -> None:
    loaded = load("countdown", dtype=torch.bfloat16, device="cuda")
    ids = torch.randint(4, 200, (4, 12), device="cuda")
    layout = {
        "steps": torch.arange(12, device="cuda").expand(4, 12),
        "thread_ids": torch.arange(1, 5, device="cuda"),
        "lattice_rows": torch.arange(4, device="cuda")[None],
    }
    out = loaded.model(input_ids=ids, **layout, use_cache=False).logits
    assert torch.isfinite(out).all()
