"""The command as users run it: the installed script, real models, one-line errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Run
from lace.cli.models import shipped_puzzle
from lace.tasks.chain_sum import BLOCK, MIN_BLOCKS
from lace.tasks.chain_sum import Puzzle as Sum
from lace.tasks.countdown import parse
from tiny import tiny_model

QUESTION = "Use 9, 14 and 6 to make 30"


def test_solve_prints_one_json_object(lace: Callable[..., Run]) -> None:
    run = lace("solve", QUESTION, "--threads", "4", "--json", "--seed", "3")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert set(told) == {
        "prompt", "answer", "correct", "chosen_thread", "chosen_by", "threads", "usage", "seconds",
    }  # fmt: skip
    assert told["prompt"] == QUESTION
    assert len(told["threads"]) == 4
    assert {"index", "text", "answer", "tag", "finish_reason", "tokens"} <= set(told["threads"][0])
    assert told["answer"] == told["threads"][told["chosen_thread"]]["answer"]
    assert told["correct"] == parse(QUESTION).check(told["answer"])
    assert told["usage"]["completion_tokens"] == sum(thread["tokens"] for thread in told["threads"])


def test_solve_in_plain_lines_names_the_answer_and_the_thread(lace: Callable[..., Run]) -> None:
    run = lace("solve", "use 2 3 and 4 to make 24", "--threads", "3", "--plain")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert sum(line.startswith("Thread ") for line in lines) == 3
    assert sum(line.startswith("Answer: ") and "the verifier" in line for line in lines) == 1
    assert sum(line.startswith("Chosen: thread ") for line in lines) == 1


def test_same_seed_same_text(lace: Callable[..., Run]) -> None:
    first, second = (lace("solve", QUESTION, "--threads", "2", "--json", "--seed", "8").stdout for _ in range(2))
    assert json.loads(first)["threads"] == json.loads(second)["threads"]


ERRORS = {
    ("solve", ""): "empty",
    ("solve", "What is love?"): "knows its tasks alone",
    ("solve", "Use 3 and 4 to make 7"): "takes 3 numbers",
    ("solve", "Use 3, 4 and 900 to make 7"): "numbers from 1 to",
    ("solve", "Compute 112 + 35 - 68 + 20 - 11 + 12"): "16, 20 or 24 terms",
    ("solve", "Compute 780 + 90 - 68 + 20 - 11"): "stays from 1 to 799",
    ("solve", QUESTION, "--threads", "0"): "threads must be between 1 and 256, not 0",
    ("solve", QUESTION, "--threads", "100000"): "threads must be between 1 and 256, not 100000",
    ("observe", "--threads", "100000"): "threads must be between 1 and 256, not 100000",
    ("eval", "countdown", "--threads", "4,100000"): "--threads takes whole numbers from 1 to 256, not '100000'",
    ("bench", "--threads", "100000"): "--threads takes whole numbers from 1 to 256, not '100000'",
    ("solve", QUESTION, "--max-tokens", "0"): "max_tokens must be at least 1",
    ("solve", QUESTION, "--temperature", "-1"): "temperature must be",
    ("solve", QUESTION, "--strategy", "chorus"): "strategy must be one of",
    ("solve", QUESTION, "--model", "no/such-model"): "no model 'no/such-model'",
    ("solve", QUESTION, "--model", ""): "name of the model is empty",
    ("info", ""): "name of the model is empty",
    ("info", "no-such-model"): "no model 'no-such-model'",
    ("eval", "countdown", "--threads", "4,x"): "--threads",
    ("eval", "countdown", "--n", "0"): "--n must be at least 1",
    ("eval", "countdown", "--n", "1", "--seed", "-1"): "the seed of a run must be between 0 and 9223344366820, not -1",
    ("graft", "puzzles", "/nonexistent/never-made"): "carries a lattice already",
    ("graft", "puzzles-isolated", "/nonexistent/never-made", "--layers", "1,x"): "--layers",
    ("graft", "puzzles-isolated", "/nonexistent/never-made", "--visibility", "psychic"): "visibility must be",
    ("graft", "puzzles-isolated", "/nonexistent/never-made", "--seed", str(2**64)): "--seed must be between 0 and",
}


@pytest.mark.parametrize("arguments", list(ERRORS))
def test_errors_are_one_line_and_a_failing_exit_code(lace: Callable[..., Run], arguments: tuple[str, ...]) -> None:
    run = lace(*arguments)
    assert run.returncode != 0
    assert run.stdout == ""
    assert ERRORS[arguments] in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert not Path("/nonexistent/never-made").exists()


OUTPUTS = [
    ("solve", QUESTION, "--trace"),
    ("eval", "countdown", "--json"),
    ("eval", "countdown", "--markdown"),
    ("bench", "--json"),
    ("bench", "--markdown"),
    ("observe", "--json"),
]


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_what_cannot_be_written_is_told_before_the_work(
    lace: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for name in ("lace.cli.models.load_engine", "lace.bench.subjects.model_engine"):
        monkeypatch.setattr(name, work)
    (tmp_path / "file").write_text("kept")
    wrong = {str(tmp_path): "Is a directory", "": "Is a directory"}
    if arguments[0] != "solve":  # which makes no folders
        wrong[str(tmp_path / "file" / "below")] = "File exists"
    for out, reason in wrong.items():
        run = lace(*arguments, out)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert run.stderr.startswith("lace: error: cannot write ")
        assert reason in run.stderr
    with pytest.raises(AssertionError, match="the work has begun"):
        lace(*arguments, str(tmp_path / "new"))
    with pytest.raises(AssertionError, match="the work has begun"):
        lace(*arguments, str(tmp_path / "file"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "kept")]


def test_questions_that_are_given_as_examples_are_known(lace: Callable[..., Run]) -> None:
    """By the help, and by the refusal of another question."""
    told = " ".join(lace("solve", "--help").stdout.split()), lace("solve", "What is love?").stderr
    for text in told:
        examples = [example for _, example in re.findall(r"""(["'])((?:Use|Compute) [^"']+)\1""", text)]
        assert len(examples) == 2
        for example in examples:
            _, puzzle = shipped_puzzle(example)
            # As long as those that the shipped models have learned.
            assert not isinstance(puzzle, Sum) or len(puzzle.terms) >= MIN_BLOCKS * BLOCK


def test_graft_and_info_on_a_local_model(lace: Callable[..., Run], tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    run = lace("graft", str(tmp_path / "base"), str(tmp_path / "out"), "--low-dim", "8", "--heads", "2")
    assert run.returncode == 0, run.stderr
    facts = json.loads(lace("info", str(tmp_path / "out"), "--json").stdout)
    assert facts["grafted"] is True
    assert facts["layers"] == [2, 3][: len(facts["layers"])]
    assert facts["new_parameters"] > 0
    assert facts["lattice_cache_bytes_per_token"] == 2 * 64 * 4 * len(facts["layers"])
    assert "not grafted" in lace("info", str(tmp_path / "base")).stdout
    again = lace("graft", str(tmp_path / "base"), str(tmp_path / "out"))
    assert again.returncode != 0
    assert "not an empty directory" in again.stderr


def test_eval_writes_the_report_and_keeps_no_partial_file(lace: Callable[..., Run], tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.json"
    run = lace("eval", "countdown", "--n", "5", "--threads", "2", "--max-tokens", "12", "--json", str(report))
    assert run.returncode == 0, run.stderr
    told = json.loads(report.read_text())
    assert (told["n"], len(told["rows"])) == (5, 2)
    assert list(report.parent.iterdir()) == [report]
    assert "Paired by puzzle" in run.stdout


def test_help_of_every_verb(lace: Callable[..., Run]) -> None:
    assert all(verb in lace("--help").stdout for verb in ("solve", "eval", "graft", "info"))
    for verb in (["solve"], ["eval", "countdown"], ["graft"], ["info"]):
        run = lace(*verb, "--help")
        assert run.returncode == 0
        assert "Usage:" in run.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lace', '--help']\n"
        "from lace.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr.strip() == "[]"


def test_installed_script_ends_with_code_2_and_one_line() -> None:
    script = Path(sys.executable).with_name("lace")
    run = subprocess.run([script, "solve", "What is love?"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
