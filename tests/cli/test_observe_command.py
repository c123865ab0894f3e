"""`lace observe`, and `lace plot` of what it writes and of traces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import lace as package
from command import Run
from lace.viz.exchange_table import markdown
from tiny import tiny_model
from tiny_engine import new_model
from traces import synthetic_trace


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; its threads end soon."""
    folder = tmp_path_factory.mktemp("observed") / "model"
    package.save(new_model(tokenizer, layers=(1, 3)), folder, whole=True)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_is_observed_and_plotted(lace: Callable[..., Run], model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "seen.json"
    command = ("observe", str(model), "--task", "countdown", "--n", "3", "--threads", "3", "--silence")
    run = lace(*command, "--json", str(path))
    assert (run.returncode, run.stderr) == (0, "")
    assert "layer 3, head 1" in run.stdout
    report = json.loads(path.read_text())
    found = report["tasks"]["countdown"]
    assert (found["puzzles"], found["threads"], found["layers"], found["heads"]) == (3, [3], [1, 3], 2)
    places = [(row["layer"], row["head"]) for row in found["silenced"]]
    assert places == [(None, None), (1, None), (3, None), (1, 0), (1, 1), (3, 0), (3, 1)]
    assert found["silenced"][0]["lost"]["value"] == 0
    assert markdown(report).count("| layer") >= 6
    assert list(path.parent.iterdir()) == [path]  # nothing of what an interrupted run would need is left

    before = path.read_text()
    assert lace(*command, "--json", str(path)).returncode == 0
    again = json.loads(path.read_text())
    assert [again["tasks"], again["weights"]] == [json.loads(before)["tasks"], report["weights"]]

    run = lace("plot", str(path), "--out", str(tmp_path / "figures"))
    assert run.returncode == 0
    names = {Path(line).name for line in run.stdout.splitlines()}
    assert {"seen-gates.png", "seen-life.svg", "seen-countdown-moments.png", "seen-countdown-heads.svg"} <= names


def test_an_interrupted_run_goes_on(lace: Callable[..., Run], model: Path, tmp_path: Path) -> None:
    from lace.eval import run as evaluation

    path = tmp_path / "seen.json"
    command = ("observe", str(model), "--task", "countdown", "--n", "3", "--threads", "3", "--silence")
    judge, left = evaluation.judge, [7]

    def interrupted(*arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("interrupted here")
        return judge(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "judge", interrupted)
        assert lace(*command, "--json", str(path)).returncode == 2
    partial = path.with_name("seen.json.partial")
    kept = [json.loads(json.loads(line)["chunk"])["model"] for line in partial.read_text().splitlines() if line]
    assert kept[0] == str(model)
    assert any("without layer 1" in name for name in kept)
    assert lace(*command, "--json", str(path)).returncode == 0
    assert not partial.exists()


def test_traces_are_plotted_together(lace: Callable[..., Run], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for seed in (0, 1):
        synthetic_trace(seed=seed, steps=30).save(tmp_path / f"{seed}.trace")
    run = lace("plot", *(str(tmp_path / f"{seed}.trace") for seed in (0, 1)), "--out", str(tmp_path / "figures"))
    assert run.returncode == 0
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {
        f"traces-{name}.png" for name in ("gates", "life", "diversity", "moments", "heads")
    }


def test_what_cannot_be_observed(lace: Callable[..., Run], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    for wrong, message in (
        (("--task", "chess"), "unknown task 'chess'"),
        ((str(tmp_path / "plain"),), "has no lattice attention"),
    ):
        run = lace("observe", *wrong)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert message in run.stderr
