"""Configs of training: what they refuse and fill in, all files in configs/, costs counted on the meta device, records
and questions from files."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from lace.data.jsonl import RecordLattices, find_files, read_records, write_records
from lace.data.record import LatticeRecord, Reference, ThreadRecord
from lace.lattice.config import LatticeConfig
from lace.lattice.graft import graft
from lace.tasks.task import get_task
from lace.train.config import GRPORun, PuzzleData, SupervisedRun, explain, flat, read_config, resolved
from lace.train.cost import Batch, training_cost
from lace.train.new_model import ModelShape
from lace.train.questions import questions_from
from lace.train.stages import build_model, dry_run, open_run

CONFIGS = Path(__file__).parents[2] / "configs"
SFT = CONFIGS / "tiny" / "smoke-sft.toml"
BASES = {"runs/out/student/base"}
"""Made by a script that the recipe runs first."""
FILES = sorted(path for path in CONFIGS.rglob("*.toml") if path.parent.name != "data")


def _stage(path: Path) -> str:
    stem = path.stem.removeprefix("smoke-")
    return stem if stem in ("cpt", "grpo") else "sft"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_is_a_config(path: Path) -> None:
    config = read_config(_stage(path), path)  # type: ignore[arg-type]
    assert config.run.out.parts[:2] == ("runs", "out")


def test_stages_of_the_recipe_start_from_one_another() -> None:
    for folder in {path.parent for path in FILES}:
        configs = [read_config(_stage(path), path) for path in folder.glob("*.toml")]  # type: ignore[arg-type]
        made = {str(config.run.out / "model") for config in configs}
        needed = {config.model.init for config in configs if config.model.init.startswith("runs/")}
        assert needed <= made | BASES
        assert len(made) == len(configs)


PUBLIC = {"qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096}


@pytest.mark.parametrize("stage", ["cpt", "sft", "grpo"])
@pytest.mark.parametrize("name", list(PUBLIC))
def test_dry_run_of_the_big_ones(name: str, stage: str) -> None:
    cost = dry_run(stage, read_config(stage, CONFIGS / name / f"{stage}.toml"))  # type: ignore[arg-type]
    assert cost.parameters - cost.lattice == PUBLIC[name]
    assert 0.003 < cost.lattice / PUBLIC[name] < 0.01
    assert cost.trainable == (cost.lattice if stage == "cpt" else cost.parameters)
    assert cost.forward_flops > 2 * PUBLIC[name]
    assert cost.memory["total"] < 80e9
    assert cost.memory["weights"] == 4 * cost.parameters


OVERRIDES = [
    ("--train.steps=5", "train.steps", 5),
    ("--train.learning_rate=1e-4", "train.learning_rate", 1e-4),
    ("--train.learning_rate=1", "train.learning_rate", 1.0),
    ("--train.bf16=true", "train.bf16", True),
    ("--train.lattice=off", "train.lattice", "off"),
    ('--train.lattice="off"', "train.lattice", "off"),
    ("--run.out=/tmp/a=b", "run.out", "/tmp/a=b"),
    ("--lattice.layers=[1]", "lattice.layers", [1]),
    ("--lattice.opening=", "lattice.opening", ""),
    ("--model.dtype=bfloat16", "model.dtype", "bfloat16"),
]


@pytest.mark.parametrize(("override", "key", "value"), OVERRIDES)
def test_overrides(override: str, key: str, value: Any) -> None:
    before, after = (flat(resolved(read_config("sft", SFT, given))) for given in ([], [override]))
    assert after.pop(key) == value
    before.pop(key, None)
    assert all(after[name] == before[name] for name in after)


REFUSED = {
    "--train.stepz=5": "unknown key train.stepz; the nearest known one is train.steps",
    "--run.learning_rate=5": "unknown key run.learning_rate; the nearest known one is train.learning_rate",
    "--lattice.lowdim=5": "unknown key lattice.lowdim; the nearest known one is lattice.low_dim",
    "--data.coordinate=true": "unknown key data.coordinate; the nearest known one is data.coordinated",
    "--grpo.steps=5": "unknown key grpo",
    "--train.steps=many": "train.steps: input should be a valid integer, not 'many'",
    "--train.steps=1.5": "train.steps: input should be a valid integer",
    "--train.bf16=1": "train.bf16: input should be a valid boolean, not 1",
    "--train.steps=0": "train: steps must be at least 1, not 0",
    "--train.stop_after=99": "train: stop_after must be from 1 to steps, 6, not 99",
    "--train.wrong_sums=6": "train: wrong_sums must be between 0 and 1, not 6",
    "--train.accumulate=3": "train: lattices_per_step must be a multiple of accumulate, 3",
    "--train.lattice=dim": "train.lattice: input should be 'on' or 'off', not 'dim'",
    "--data.kind=poems": "data.kind must be 'puzzles' or 'records'",
    "--data.kind=records": "data.coordinated",
    "--lattice.gate=head.x": "lattice.gate: input should be 'head' or 'none'",
    "--lattice.num_heads=0": "lattice: num_heads must be at least 1, not 0",
    "--model.shape.vocab_size=9": "model.shape.vocab_size: a new model has its tokenizer's vocabulary",
    "--model.shape.num_key_value_heads=4": "num_attention_heads must be a multiple of num_key_value_heads",
    "--model.revision=main": "model.revision is of a model to be loaded",
    "--train.steps.more=5": "steps is no section",
    "--train.steps": "is no override",
}


@pytest.mark.parametrize("override", list(REFUSED))
def test_refusals_are_one_line_that_names_the_key(override: str) -> None:
    with pytest.raises(ValueError, match=re.escape(REFUSED[override])) as raised:
        read_config("sft", SFT, [override])
    assert "\n" not in str(raised.value)


def test_what_is_missing_and_what_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[run]\nout = 'x'\n")
    with pytest.raises(ValueError, match="model is missing"):
        read_config("sft", tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("[run\n")
    with pytest.raises(ValueError, match=r"a\.toml is no TOML"):
        read_config("sft", tmp_path / "a.toml")


def test_one_key_follows_another_unless_it_is_given() -> None:
    def data(*overrides: str) -> PuzzleData:
        config = read_config("sft", SFT, overrides)
        assert isinstance(config, SupervisedRun)
        assert isinstance(config.data, PuzzleData)
        return config.data

    assert data("--run.seed=7").seed == 7
    assert data("--run.seed=7", "--data.seed=8").seed == 8
    assert data("--train.lattices_per_step=6").group == 6
    assert data("--lattice.max_thread_id=12").max_label == 12
    assert data("--lattice.visibility=causal").visibility == "causal"
    assert data("--lattice.visibility=same_step").visibility == "strict"
    grpo = read_config("grpo", CONFIGS / "tiny" / "smoke-grpo.toml", ["--run.seed=7"])
    assert isinstance(grpo, GRPORun)
    assert grpo.grpo.seed == 7


@pytest.mark.parametrize("cls", [SupervisedRun, GRPORun])
def test_every_key_is_documented(cls: type) -> None:
    keys = list(explain(cls))
    assert {"run.out", "model.init", "lattice.low_dim"} <= {key.name for key in keys}
    assert [key.name for key in keys if not key.description or not key.type] == []


def test_a_run_goes_on_only_with_its_own_config(tmp_path: Path) -> None:
    out = f"--run.out={tmp_path / 'run'}"
    config = read_config("sft", SFT, [out])
    assert not open_run("sft", config, "lace train sft ...")
    told = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert told["command"] == "lace train sft ..."
    assert {"commit", "seed", "versions", "config"} <= told.keys()
    assert told["config"]["train"]["weight_decay"] == 0.05  # a default
    assert not open_run("sft", config, "")
    other = read_config("sft", SFT, [out, "--train.steps=9", "--run.seed=1"])
    with pytest.raises(
        ValueError, match=r"another config: data\.seed .*, run\.seed .*, train\.steps \(there 6, now 9\)"
    ):
        open_run("sft", other, "")
    with pytest.raises(ValueError, match="another config: stage"):
        open_run("cpt", config, "")
    (tmp_path / "run" / "model").mkdir()
    assert open_run("sft", config, "")
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists, but holds no run"):
        open_run("sft", read_config("sft", SFT, [f"--run.out={tmp_path}"]), "")


def test_the_models_lattice_must_be_that_of_the_config(tmp_path: Path) -> None:
    config = read_config("sft", SFT, ["--model.init=puzzles", "--lattice.low_dim=8"])
    with pytest.raises(ValueError, match=r"is not that of the section \[lattice\]: .*low_dim \(there 64, here 8\)"):
        build_model(config)


REFUSED_IN_DRY_RUN = {
    ("cpt", "--train.lattice=off"): "cpt trains the lattice alone",
    ("sft", "--data.visibility=causal"): "'causal' is a step too early",
    ("sft", "--data.max_label=40"): "data.max_label, 40, is above",
}


@pytest.mark.parametrize(("stage", "override"), list(REFUSED_IN_DRY_RUN))
def test_what_does_not_fit_together(stage: Any, override: str) -> None:
    with pytest.raises(ValueError, match=REFUSED_IN_DRY_RUN[stage, override]):
        dry_run(stage, read_config(stage, SFT, [override]))


def _saved_bytes(shape: ModelShape, rows: int, tokens: int, autocast: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters not counted."""
    model = Qwen3ForCausalLM(shape.to_config()).train()
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros((rows, tokens), dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _ = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in known)


@pytest.mark.parametrize("autocast", [False, True])
def test_estimate_of_activations_is_what_autograd_keeps(autocast: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 64}
    rows, tokens = 6, 96
    two, four = (ModelShape(num_hidden_layers=layers, **sizes) for layers in (2, 4))  # type: ignore[arg-type]
    measured = _saved_bytes(four, rows, tokens, autocast) - _saved_bytes(two, rows, tokens, autocast)
    models = [Qwen3ForCausalLM(shape.to_config()) for shape in (two, four)]
    costs = [training_cost(m, Batch(rows, 1, tokens, autocast, False, False)) for m in models]
    estimated = costs[1].memory["activations"] - costs[0].memory["activations"]
    if autocast:
        estimated += costs[1].memory["copies"] - costs[0].memory["copies"]
    assert measured == pytest.approx(estimated, rel=0.03)


def test_operations_per_token_by_hand() -> None:
    shape = ModelShape(64, 2, 96, 4, 2, 16, vocab_size=50)
    model = Qwen3ForCausalLM(shape.to_config())
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    forward = 2 * (2 * layer + 50 * 64) + 4 * 10 * 2 * 64
    batch = Batch(1, 3, 10, False, False, False)
    cost = training_cost(model, batch)
    assert cost.forward_flops == forward
    assert cost.training_flops == 2 * forward + 2 * (2 * layer + 50 * 64)
    graft(model, LatticeConfig(layers=(1,), low_dim=8, num_heads=2, time_dims=4, thread_dims=4))
    lattice = 64 * 8 + 8 * (16 + 8 + 8 + 2) + 16 * 64
    grafted = training_cost(model, batch)
    assert grafted.forward_flops == forward + 2 * lattice + 4 * 3 * 10 * 16
    assert grafted.lattice == lattice + 8 + 8  # norm and null key


# --- records and questions from files --------------------------------------------------------------------------------


def _record(label: int = 3, answer: str = "4") -> LatticeRecord:
    one = ThreadRecord(
        label, ["Thread", str(label), ":", "1", "+", "3", "=", answer], 3, [], {7: {"4": 0.75, "5": 0.25}}
    )
    two = ThreadRecord(label + 1, ["Thread", str(label + 1), ":", "1", "+", "3", "=", "4", "yes", "4"], 3)
    two.references.append(Reference(9, 0, 7))
    return LatticeRecord("Use 1 and 3 to make 4", [one, two])


def test_records_survive_a_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    records = [_record(label) for label in (3, 7, 9)]
    write_records(tmp_path / "a.jsonl", records)
    assert list(read_records(tmp_path / "a.jsonl")) == records
    lattices = RecordLattices(find_files(tmp_path), tokenizer, 9, seed=1)
    rounds = [[lattices[n].thread_ids[0] for n in range(start, start + 3)] for start in (0, 3, 6)]
    assert all(sorted(labels) == [3, 7, 9] for labels in rounds)
    assert len({tuple(labels) for labels in rounds}) > 1  # shuffled anew
    assert [lattices[n].thread_ids[0] for n in (8, 0, 8)] == [rounds[2][2], rounds[0][0], rounds[2][2]]
    assert lattices[0].choices[0] == {7: {tokenizer.convert_tokens_to_ids("4"): 0.75,
                                          tokenizer.convert_tokens_to_ids("5"): 0.25}}  # fmt: skip
    with pytest.raises(IndexError):
        lattices[9]


def test_records_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    values = [{"prompt": r.prompt, "threads": [vars(t) for t in r.threads]} for r in (_record(3), _record(5))]
    for value in values:
        for thread in value["threads"]:
            thread["references"] = [vars(reference) for reference in thread["references"]]
            thread["choices"] = [(step, list(options.items())) for step, options in thread["choices"].items()]
    probabilities = pyarrow.map_(pyarrow.string(), pyarrow.float64())
    reference = pyarrow.struct([(field.name, pyarrow.int64()) for field in fields(Reference)])
    thread_type = pyarrow.struct(
        [
            ("label", pyarrow.int64()),
            ("tokens", pyarrow.list_(pyarrow.string())),
            ("opening", pyarrow.int64()),
            ("references", pyarrow.list_(reference)),
            ("choices", pyarrow.map_(pyarrow.int64(), probabilities)),
        ]
    )
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("threads", pyarrow.list_(thread_type))])
    parquet.write_table(pyarrow.Table.from_pylist(values, schema), tmp_path / "a.parquet")
    assert list(read_records(find_files(tmp_path)[0])) == [_record(3), _record(5)]


WRONG_LINES = {
    "{": "line 2: Invalid JSON",
    '{"prompt": "p"}': "line 2: threads: Field required",
    '{"prompt": "p", "threads": [], "note": 1}': "line 2: note: Unexpected keyword argument",
    '{"prompt": "p", "threads": [{"label": "3", "tokens": []}]}': "line 2: threads.0.label: Input should be a",
    '{"prompt": "p", "threads": [{"label": 3, "tokens": [], "open": 1}]}': "line 2: threads.0.open: Unexpected keyword",
}


@pytest.mark.parametrize("line", list(WRONG_LINES))
def test_a_malformed_record_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    write_records(tmp_path / "a.jsonl", [_record()])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2") as raised:
        list(read_records(tmp_path / "a.jsonl"))
    assert WRONG_LINES[line] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_records_that_cannot_be_taken(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \.jsonl or \.parquet file"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a directory nor a data set"):
        find_files(tmp_path / "nowhere")
    write_records(tmp_path / "a.jsonl", [_record(answer="zebra")])
    files = find_files(tmp_path)
    with pytest.raises(ValueError, match="record 1: 2 threads, not 1 to 1"):
        RecordLattices(files, tokenizer, 1, max_threads=1)
    with pytest.raises(ValueError, match=r"record 1: a row of 18 tokens, more than 17"):
        RecordLattices(files, tokenizer, 1, max_tokens=17)
    with pytest.raises(ValueError, match=r"a\.jsonl, record 1: thread 3: token 'zebra' is not in the vocabulary"):
        RecordLattices(files, tokenizer, 1)[0]


def test_questions_of_a_task_and_of_a_file(tmp_path: Path) -> None:
    asked = questions_from("countdown", 3)
    assert asked[5].prompt == questions_from("countdown", 3)[5].prompt != questions_from("countdown", 4)[5].prompt
    assert get_task("countdown").parse(asked[5].prompt).prompt == asked[5].prompt
    assert not asked[5].check("1 + 1")
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + 1 ?", "answer": f" {n + 1}"}) + "\n" for n in range(5)))
    given = questions_from(str(path), 0)
    rounds = [[given[n].prompt for n in range(start, start + 5)] for start in (0, 5, 10)]
    assert all(len(set(prompts)) == 5 for prompts in rounds)
    assert len({tuple(prompts) for prompts in rounds}) > 1
    question = given[0]
    right = str(int(question.prompt[0]) + 1)
    assert [question.check(text) for text in (right, f" {right} ", right + "0", None)] == [True, True, False, False]
    for line, message in (("{", "line 1: no JSON"), ('{"prompt": "x"}', "line 1: an object of two texts")):
        path.write_text(line)
        with pytest.raises(ValueError, match=message):
            questions_from(str(path), 0)
    with pytest.raises(ValueError, match="neither a file nor a task"):
        questions_from("poems", 0)
