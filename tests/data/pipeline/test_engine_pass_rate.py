"""The pass rate of a real model in this process: the embedded one, which gets some of these puzzles right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from byte_tokenizer import byte_tokenizer
from lace.cli.base_sampler import EngineSampler
from lace.cli.models import load_engine
from lace.data.pipeline.config import DataConfig, Engine
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.plan import plan_stages
from lace.data.pipeline.prompts import read_prompt
from lace.data.pipeline.ray_executor import actors_of
from lace.data.pipeline.resources import Helpers
from lace.data.pipeline.run import run_pipeline
from lace.engine.sampling import SamplingParams
from lace.tasks import chain_sum, countdown
from lace.tasks.task import find_task
from teachers.puzzles import puzzle_teacher
from teachers.server import Server
from tiny import SHAPE

SAMPLES = 8


def test_an_engine_decides_which_questions_are_worth_a_teacher(
    make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    rng = Random(0)
    prompts = [task.generate(rng, "test").prompt for task in (countdown, chain_sum) for _ in range(5)]
    rows = [{"id": f"q{n}", "question": prompt, "answer": ""} for n, prompt in enumerate(prompts)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id", "verifier": "my_verifiers:solves_puzzle"}
    with Server(puzzle_teacher()) as server:
        config = make_config(
            server.url,
            base={"engine": "puzzles", "temperature": 1.0, "max_tokens": 165},
            pass_rate={"samples": SAMPLES},
            questions={"sources": [source], "near_duplicates": 0},
        )
        assert isinstance(config.base, Engine)
        run_pipeline(config, helpers=Helpers(partial(EngineSampler, config.base)))
    (outcomes,) = config.run.out.glob("stages/2-pass-rate-*/outcomes.jsonl")
    lines = {line["id"]: line for line in read_lines(outcomes)}
    assert sorted(lines) == [f"q{n}" for n in range(10)]

    engine = load_engine("puzzles")
    rates = {}
    for n, prompt in enumerate(prompts):
        seed = Random(f"{config.run.seed}/pass rate/q{n}").getrandbits(31)
        params = SamplingParams(threads=SAMPLES, temperature=1.0, max_tokens=165, seed=seed)
        (result,) = engine.generate(prompt, params, strategy="independent")
        right = [find_task(prompt)[1].check(thread.answer) for thread in result.threads]
        rates[f"q{n}"] = sum(right) / SAMPLES
    for identity, rate in rates.items():
        line = lines[identity]
        if 0 < rate <= 0.5:
            assert line["item"]["pass_rate"] == rate
            mark = line["item"]["history"][-1]
            assert mark["models"] == ["puzzles"]
            assert mark["prompts"][0].startswith("attempt ")
        else:
            assert (line["reason"], line["detail"]) == (
                "solved too rarely" if rate == 0 else "solved too often",
                f"pass rate {rate:.3g}",
            )
    assert len({line["kept"] for line in lines.values()}) == 2  # some of each, so that both ways were taken


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_model_is_asked_in_its_chat_format_or_by_the_plain_prompt(tmp_path: Path, template: str | None) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    shape: dict[str, Any] = {
        **SHAPE,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 1,
        "max_position_embeddings": 1024,
    }
    Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sampler = EngineSampler(Engine(engine=str(tmp_path), max_tokens=4))
    messages = read_prompt("attempt").fill({"question": "What is 3 + 4?"})
    plain = f"{messages[0]['content']}\n\nWhat is 3 + 4?"
    assert sampler.prompt(messages) == (f"<user>{plain}<assistant>" if template else plain)
    assert len(asyncio.run(sampler(messages, 3, 0))) == 3


def test_an_engine_that_is_not_there_is_named(make_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    config = make_config("http://127.0.0.1:1/v1", base={"engine": str(tmp_path / "nothing")})
    assert isinstance(config.base, Engine)
    with pytest.raises((ValueError, FileNotFoundError), match="nothing"):
        EngineSampler(config.base)


@pytest.mark.parametrize(
    ("gpus", "engine", "stage", "expected"),
    [
        (0, True, "pass-rate", (2, {"num_cpus": 4.0})),
        (3, True, "pass-rate", (3, {"num_cpus": 0.5, "num_gpus": 1})),
        (3, True, "solutions", (24, {"num_cpus": 0.5})),
        (3, False, "pass-rate", (24, {"num_cpus": 0.5})),
    ],
)
def test_a_cluster_holds_an_engine_for_each_gpu_or_machine(
    make_config: Callable[..., DataConfig], gpus: int, engine: bool, stage: str, expected: tuple[int, dict[str, float]]
) -> None:
    base = {"engine": "puzzles"} if engine else {"base_url": "http://127.0.0.1:1/v1", "model": "base"}
    config = make_config("http://127.0.0.1:1/v1", base=base)
    planned = next(each for each in plan_stages(config) if each.name == stage)
    nodes: list[dict[str, Any]] = [{"Resources": {"CPU": 16.0}}, {"Resources": {"CPU": 8.0}}, {"Resources": {}}]
    assert actors_of(config, planned, {"CPU": 24.0, "GPU": float(gpus)}, nodes) == expected
