"""`lace data` as users run it, from puzzles to a model that has trained on what came of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from byte_tokenizer import CONFIG as STUDENT
from byte_tokenizer import byte_tokenizer
from command import Run
from lace.data.jsonl import find_files, read_records
from lace.data.pipeline.config import read_config
from teachers.puzzles import puzzle_teacher
from teachers.server import Answer, Request, Server
from tiny import SHAPE

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
SFT = """
[run]
out = "{out}"
[model]
init = "{model}"
[lattice]
low_dim = 16
num_heads = 2
time_dims = 8
thread_dims = 4
opening = "Thread {{label}}:"
[data]
kind = "records"
path = "{data}"
[train]
steps = 2
learning_rate = 1e-3
lattices_per_step = 2
warmup_steps = 1
log_every = 1
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer can write whatever a teacher says."""
    folder, tokenizer = tmp_path_factory.mktemp("student"), byte_tokenizer()
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "head_dim": 8}
    Qwen3ForCausalLM(Qwen3Config(**{**shape, "max_position_embeddings": 8192})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_text(out: Path, student: Path, url: str, more: str = "") -> str:
    return f"""
[run]
out = "{out}"
concurrency = 8
[teacher]
base_url = "{url}"
model = "puzzles"
price_completion = 1000.0
[[questions.sources]]
kind = "reasoning-gym"
task = "chain_sum"
size = 8
[[questions.sources]]
kind = "reasoning-gym"
task = "knights_knaves"
size = 4
{STUDENT.format(student=student)}
[verify]
seconds = 60.0
{more}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, student: Path) -> Path:
    """The folder of a finished run."""
    from lace.data.pipeline.run import run_pipeline

    folder = tmp_path_factory.mktemp("made")
    with Server(puzzle_teacher()) as server:
        (folder / "c.toml").write_text(config_text(folder / "out", student, server.url))
        run_pipeline(read_config(folder / "c.toml"), "lace data run c.toml")
    return folder / "out"


def test_run_tells_where_the_lattices_are(lace: Callable[..., Run], tmp_path: Path, student: Path) -> None:
    with Server(puzzle_teacher()) as server:
        text = config_text(tmp_path / "out", student, server.url, "[budget]\ntokens = 500\n")
        (tmp_path / "c.toml").write_text(text)
        run = lace("data", "run", str(tmp_path / "c.toml"))
        assert run.returncode == 1
        assert "lace data: stopped: budget.tokens = 500 is spent; raise it and run again to go on" in run.stderr
        (tmp_path / "c.toml").write_text(text.replace("500", "0"))
        run = lace("data", "run", str(tmp_path / "c.toml"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(tmp_path / "out")
    assert re.search(r"solutions  12/12  .*calls/s .* tokens  cost \d", run.stderr)
    assert re.search(r"^train: \d+ lattices$", run.stderr, re.MULTILINE)


def test_stats_count_and_measure(lace: Callable[..., Run], made: Path, tmp_path: Path) -> None:
    run = lace("data", "stats", str(made), "--json", str(tmp_path / "stats.json"))
    assert run.returncode == 0, run.stderr
    assert "causal 100.00%" in run.stdout
    stats = json.loads((tmp_path / "stats.json").read_text())
    stages = {stage["name"]: stage for stage in stats["stages"]}
    assert list(stages) == ["questions", "solutions", "verify", "steps", "notes", "lattice"]
    assert stages["questions"]["kept"] == 12
    assert stages["solutions"]["completion_tokens"] / 1000 == pytest.approx(stages["solutions"]["cost"])
    quality = stats["quality"]
    assert quality["lattices"] == stages["lattice"]["kept"] == quality["tags"]["best"]
    assert quality["lattices"] >= sum(stats["parts"].values()) > 0
    assert 0.2 <= quality["edit_distance"] <= 1.0
    assert quality["causal"] == quality["references"] > 0
    run = lace("data", "stats", str(made), "--json", str(tmp_path))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"lace: error: cannot write {str(tmp_path)!r}: Is a directory\n"


def test_show_puts_the_threads_side_by_side(lace: Callable[..., Run], made: Path) -> None:
    record = next(iter(read_records(made / "train" / "lattices.jsonl")))
    origin = json.loads(record.origin)
    run = lace("data", "show", str(made), origin["id"])
    assert run.returncode == 0, run.stderr
    titles = next(line for line in run.stdout.splitlines() if "─ Thread " in line)
    assert [int(n) for n in re.findall(r"Thread (\d+)", titles)] == [thread.label for thread in record.threads]
    assert re.search(r"◀ all: ", run.stdout)
    assert "[[best]]" in run.stdout
    run = lace("data", "show", str(made), "chain_sum-plain-0-99")
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)
    assert "has no question 'chain_sum-plain-0-99'; there is 'chain_sum-plain-0-" in run.stderr


def test_show_passes_nothing_to_the_terminal_but_text(lace: Callable[..., Run], tmp_path: Path, student: Path) -> None:
    """A teacher's text may hold escape sequences, and a question's id what looks like markup."""
    teacher = puzzle_teacher(errors=0.0)

    def script(request: Request) -> Answer:
        answer = teacher(request)
        reply = json.loads(answer.text or "")
        if "steps" in reply:
            reply["steps"][0] += "\x1b]0;title\x07\x1b[2J\u202e"
        return Answer(json.dumps(reply))

    row = {"id": "q[/b]1", "question": "Calculate 12 + 33 + 45 + 61.", "answer": "151"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with Server(script) as server:
        text = config_text(tmp_path / "out", student, server.url)
        sources = text[text.index("[[questions") : text.index("[student]")]
        file = f'[[questions.sources]]\nkind = "file"\npath = "{tmp_path / "q.jsonl"}"\nid = "id"\n'
        (tmp_path / "c.toml").write_text(text.replace(sources, file))
        assert lace("data", "run", str(tmp_path / "c.toml")).returncode == 0
    run = lace("data", "show", str(tmp_path / "out"), "q[/b]1")
    assert run.returncode == 0, run.stderr
    assert " q[/b]1 " in run.stdout.splitlines()[0]
    assert "]0;title[2J" in run.stdout.replace("\n", "")
    assert not set("\x1b\x07\u202e") & set(run.stdout)


def test_push_to_a_directory_writes_what_training_reads(
    lace: Callable[..., Run], made: Path, tmp_path: Path, student: Path
) -> None:
    target = tmp_path / "set"
    run = lace("data", "push", str(made), str(target))
    assert run.returncode == 0, run.stderr
    assert {path.name for path in target.iterdir()} == {"README.md", "train.parquet", "validation.parquet"}
    card = (target / "README.md").read_text()
    assert "| references that are causal | 100.00% |" in card
    assert "path: train.parquet" in card
    assert [path.name for path in find_files(target)] == ["train.parquet"]
    assert list(read_records(target / "train.parquet")) == list(read_records(made / "train" / "lattices.jsonl"))
    again = lace("data", "export", str(made), str(target))
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)


def test_what_the_pipeline_made_is_trained_on(
    lace: Callable[..., Run], made: Path, tmp_path: Path, student: Path
) -> None:
    config = SFT.format(out=tmp_path / "sft", model=student, data=made / "train")
    (tmp_path / "sft.toml").write_text(config)
    run = lace("train", "sft", str(tmp_path / "sft.toml"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(tmp_path / "sft" / "model")
    lines = map(json.loads, (tmp_path / "sft" / "log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configs_that_come_along_are_valid(path: Path) -> None:
    read_config(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[lattices]\nvalidaton = 0.1", "unknown key lattices.validaton; the nearest known one is validation"),
        ("[lattices]\nvalidation = 1.5", "lattices.validation: input should be less than or equal to 1, not 1.5"),
        ("[lattices]\nverifer = 0.1", "unknown key lattices.verifer; the nearest known one is verifier"),
        (
            "[base]\nmodel = 'm'\nbase_url = 'http://me:hidden@127.0.0.1/v1'",
            "base: base_url must not hold a name or password, since the config is written down",
        ),
        (
            "[base]\nmodel = 'm'\nbase_url = 'http://127.0.0.1/v1'\napi_key_env = 'sk-1'",
            "base: api_key_env must be the name of an environment variable, not a key",
        ),
        (
            "[base]\nmodel = 'm'\nbase_url = 'localhost:8000/v1'",
            "base: base_url must look like http://127.0.0.1:8000/v1",
        ),
        (
            "[base]\nmodel = 'm'\nbase_url = 'https://example.org/v1?key=hidden'",
            "base: base_url must look like http://127.0.0.1:8000/v1",
        ),
        ("[base]\nengine = 3", "base.engine: input should be a valid string, not 3"),
        ("[pass_rate]\nsamples = '8'", "pass_rate.samples: input should be a valid integer, not '8'"),
    ],
)
def test_a_wrong_config_is_told_in_one_line(
    lace: Callable[..., Run], tmp_path: Path, student: Path, line: str, told: str
) -> None:
    (tmp_path / "c.toml").write_text(config_text(tmp_path / "out", student, "http://127.0.0.1:1", line))
    run = lace("data", "run", str(tmp_path / "c.toml"))
    assert run.returncode == 2
    assert run.stderr == f"lace: error: {tmp_path / 'c.toml'}: {told}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("about", [None, '{"config": {}}', '{"conf', "[]"])
def test_what_holds_no_run_is_told_in_one_line(lace: Callable[..., Run], tmp_path: Path, about: str | None) -> None:
    if about is not None:
        (tmp_path / "run.json").write_text(about)
    for verb in (["stats"], ["show", "x"], ["export", str(tmp_path / "new")]):
        run = lace("data", verb[0], str(tmp_path), *verb[1:])
        assert run.returncode == 2
        assert run.stderr == f"lace: error: {tmp_path} holds no run of lace data (run.json)\n"
