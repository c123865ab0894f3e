"""`lace train` as users run it: three stages on tiny models, what learns in each, interruption and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from command import Run
from lace.data.puzzle_mixture import PuzzleLattices
from lace.lattice.checkpoint import load
from lace.lattice.graft import lattice_layers
from lace.train.config import read_config
from lace.train.grpo import LatticeGRPO
from lace.train.stages import build_model

TINY = Path(__file__).parents[2] / "configs" / "tiny"
CONFIGS = {stage: str(TINY / f"smoke-{stage}.toml") for stage in ("cpt", "sft", "grpo")}


@pytest.fixture
def train(lace: Callable[..., Run]) -> Callable[..., Run]:
    return lambda *arguments: lace("train", *arguments)


def _steps(out: Path) -> list[int]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


def _changed(before: PreTrainedModel, after: PreTrainedModel) -> dict[str, bool]:
    now = dict(after.named_parameters())
    return {name: not torch.equal(p, now[name]) for name, p in before.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_cpt_trains_the_lattice_and_leaves_the_base_bit_for_bit(
    train: Callable[..., Run], tmp_path: Path, checkpointing: str
) -> None:
    given = [CONFIGS["cpt"], f"--run.out={tmp_path}/out", f"--train.gradient_checkpointing={checkpointing}"]
    run = train("cpt", *given, "--train.weight_decay=0.1", "--train.optimizer=muon")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{tmp_path}/out/model"
    before, _ = build_model(read_config("cpt", given[0], given[1:]))
    changed = _changed(before, load(tmp_path / "out" / "model").model)
    assert not any(moved for name, moved in changed.items() if ".lattice." not in name)
    assert all(moved for name, moved in changed.items() if ".lattice." in name)


def test_cpt_of_a_model_from_elsewhere_saves_the_lattice_alone(train: Callable[..., Run], tmp_path: Path) -> None:
    """From nothing, without a lattice: the base; then its lattice, and the whole again."""
    text = Path(CONFIGS["sft"]).read_text()
    head, _, tail = text.partition("[lattice]")
    (tmp_path / "base.toml").write_text(head + tail[tail.index("[data]") :])
    run = train("sft", str(tmp_path / "base.toml"), f"--run.out={tmp_path}/base")
    assert (run.returncode, "add a section [lattice]" in run.stderr) == (2, True)
    run = train("sft", str(tmp_path / "base.toml"), f"--run.out={tmp_path}/base1", "--train.lattice=off")
    assert run.returncode == 0, run.stderr
    base = load(tmp_path / "base1" / "model").model
    assert not lattice_layers(base)
    (tmp_path / "grafted.toml").write_text(text.replace('init = "new"', f'init = "{tmp_path}/base1/model"'))
    run = train("cpt", str(tmp_path / "grafted.toml"), f"--run.out={tmp_path}/cpt")
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "cpt" / "model" / "model.safetensors").exists()
    grafted = load(tmp_path / "cpt" / "model").model
    assert not any(_changed(base, grafted).values())
    init = f"--model.init={tmp_path}/cpt/model"
    run = train("sft", CONFIGS["sft"], f"--run.out={tmp_path}/sft", init, "--train.steps=2")
    assert run.returncode == 0, run.stderr
    assert all(_changed(grafted, load(tmp_path / "sft" / "model").model).values())


def test_sft_trains_everything_but_a_lattice_that_is_off(train: Callable[..., Run], tmp_path: Path) -> None:
    given = [CONFIGS["sft"], f"--run.out={tmp_path}/out", "--train.lattice=off", "--data.coordinated=false"]
    run = train("sft", *given)
    assert run.returncode == 0, run.stderr
    assert [line.split()[:2] for line in run.stderr.splitlines()] == [["sft", f"{n}/6"] for n in range(1, 7)]
    assert _steps(tmp_path / "out") == [1, 2, 3, 4, 5, 6]
    before, _ = build_model(read_config("sft", given[0], given[1:]))
    for name, moved in _changed(before, load(tmp_path / "out" / "model").model).items():
        assert moved == (".lattice." not in name), name
    again = train("sft", *given)
    assert (again.returncode, "finished already" in again.stderr) == (0, True)
    other = train("sft", *given, "--train.weight_decay=0")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "train.weight_decay (there 0.05, now 0.0)" in other.stderr


def test_a_run_that_ends_at_a_wanted_skill(train: Callable[..., Run], tmp_path: Path) -> None:
    """A model that knows nothing is as good as chance, and no better."""
    given = [CONFIGS["sft"], f"--run.out={tmp_path}/out", "--train.log_every=2"]
    assert train("sft", *given, "--train.wrong_sums=0.9999").returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "wrong_sums" in line] == [2]
    assert max(line["step"] for line in lines) == 2
    assert (tmp_path / "out" / "model").is_dir()
    given[1] = f"--run.out={tmp_path}/other"
    run = train("sft", *given, "--train.wrong_sums=0.05")
    assert run.returncode == 2
    assert "of the sums are wrong after 6 steps, more than the 5.0% of train.wrong_sums" in run.stderr
    assert not (tmp_path / "other" / "model").exists()


@pytest.mark.parametrize("strategy", ["lace", "independent"])
def test_grpo(train: Callable[..., Run], tmp_path: Path, strategy: str) -> None:
    given = [CONFIGS["grpo"], f"--run.out={tmp_path}/out", f"--grpo.strategy={strategy}", "--grpo.kl_weight=0.1"]
    run = train("grpo", *given)
    assert run.returncode == 0, run.stderr
    assert _steps(tmp_path / "out") == [1, 2, 3]
    assert "3/3" in run.stderr
    assert "reward" in run.stderr
    assert lattice_layers(load(tmp_path / "out" / "model").model)


def _assert_same(one: Path, two: Path) -> None:
    models = [load(path / "model").model for path in (one, two)]
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_interrupted_and_resumed_equals_unbroken(
    train: Callable[..., Run], tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [stage, CONFIGS[stage], "--run.seed=5"]
    assert train(*settings, f"--run.out={tmp_path}/unbroken").returncode == 0
    with monkeypatch.context() as patch:
        read, learn = PuzzleLattices.__getitem__, LatticeGRPO.learn

        def read_until(self: PuzzleLattices, index: int) -> object:
            if index == 10:  # of step 6, after the checkpoint of step 4
                raise KeyboardInterrupt
            return read(self, index)

        def learn_until(self: LatticeGRPO, *sampled: list) -> dict[str, float]:
            if self.step == 2:
                raise KeyboardInterrupt
            return learn(self, *sampled)

        patch.setattr(PuzzleLattices, "__getitem__", read_until)
        patch.setattr(LatticeGRPO, "learn", learn_until)
        run = train(*settings, f"--run.out={tmp_path}/broken")
    assert run.returncode == 130
    told = run.stderr.splitlines()[-1]
    kept = 4 if stage == "sft" else 2
    assert f"keeps step {kept}, go on with: lace train {stage}" in told
    assert not (tmp_path / "broken" / "model").exists()
    run = train(*settings, f"--run.out={tmp_path}/broken")
    assert run.returncode == 0, run.stderr
    assert _steps(tmp_path / "broken") == _steps(tmp_path / "unbroken")
    _assert_same(tmp_path / "unbroken", tmp_path / "broken")


ERRORS = {
    ("sft", CONFIGS["sft"], "--train.stepz=3"): "unknown key train.stepz; the nearest known one is train.steps",
    ("sft", CONFIGS["sft"], "--dryrun"): "no such option: --dryrun",
    ("sft",): "takes one config file, not 0",
    ("sft", "/nonexistent.toml"): "No such file",
    ("sft", CONFIGS["grpo"]): "unknown key grpo",
    ("sft", CONFIGS["sft"], "--model.init=nobody/nothing", "--run.out={}/x"): "no model 'nobody/nothing'",
    ("grpo", CONFIGS["grpo"], "--grpo.questions=poems", "--run.out={}/x"): "no questions at 'poems'",
}


@pytest.mark.parametrize("arguments", list(ERRORS))
def test_errors_are_one_line(train: Callable[..., Run], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = train(*[text.format(tmp_path) for text in arguments])
    assert run.returncode == 2
    assert ERRORS[arguments] in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert run.stdout == ""


def test_explain_and_dry_run(train: Callable[..., Run], tmp_path: Path) -> None:
    told = train("sft", "--explain").stdout
    assert "[train]\n" in told
    assert "  steps: whole number; required\n      Optimiser steps" in told
    assert "  visibility: 'strict' | 'causal' | 'same_step'; default 'strict'" in told
    assert "[grpo.rewards]" in train("grpo", "--explain").stdout
    run = train("cpt", "--dry-run", "--train.bf16=true", CONFIGS["cpt"], f"--run.out={tmp_path}/out")
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()[:3]] == ["parameters", "trainable", "lattice"]
    assert "memory, total" in run.stdout
    assert not (tmp_path / "out").exists()
