"""Training on lattices: it learns, accumulates and resumes as it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

from lace.data.assemble import AssembledLattice
from lace.data.collate import IGNORED
from lace.data.puzzle_mixture import PuzzleLattices, PuzzleMixture
from lace.lattice.graft import graft, lattice_parameters
from lace.train.sft import lattice_loss, train_lattices
from tiny import SHAPE, tiny_config


class _Killed(Exception):
    pass


class _Lattices(Dataset[AssembledLattice]):
    """Small lattices of unequal size; reading item `deadly` ends the run as a kill would."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, distinct: int, deadly: int | None = None) -> None:
        mixture = PuzzleMixture(coordinated=True, max_threads=3, four_numbers=0.0)
        self.source, self.distinct, self.deadly = PuzzleLattices(mixture, tokenizer, distinct), distinct, deadly

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> AssembledLattice:
        if index == self.deadly:
            raise _Killed
        return self.source[index % self.distinct]


def _model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(**{**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "head_dim": 8})
    config.max_position_embeddings = 512
    return graft(Qwen3ForCausalLM(config), tiny_config())


def _log(output: Path) -> list[dict[str, float]]:
    lines = (output / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


SETTINGS = {"learning_rate": 5e-3, "warmup_steps": 1, "log_every": 1, "save_every": 1000}


def test_loss_falls_and_the_lattice_learns(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = _model(tokenizer)
    before = {name: p.detach().clone() for name, p in lattice_parameters(model)}
    train_lattices(
        model, _Lattices(tokenizer, 2), tokenizer.pad_token_id, tmp_path, steps=15, lattices_per_step=2, **SETTINGS
    )
    losses = [line["loss"] for line in _log(tmp_path)]
    assert len(losses) == 15
    assert losses[-1] < losses[0] - 1
    assert all(not torch.equal(p, before[name]) for name, p in lattice_parameters(model))


def test_accumulation_equals_one_large_batch(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Although the lattices differ in their number of tokens: the mean is over tokens, not over micro-batches."""
    logs = []
    for accumulate in (1, 8):
        output = tmp_path / str(accumulate)
        train_lattices(
            _model(tokenizer),
            _Lattices(tokenizer, 8),
            tokenizer.pad_token_id,
            output,
            steps=2,
            lattices_per_step=8,
            accumulate=accumulate,
            **SETTINGS,
        )
        logs.append(_log(output))
    for one, eight in zip(*logs, strict=True):
        assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert eight["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("processes", "settings", "message"),
    [
        ("1", {"accumulate": 3}, "4 lattices a step cannot be accumulated in 3 equal parts$"),
        ("3", {"accumulate": 1}, "4 lattices a step cannot be accumulated in 1 equal parts by 3 processes"),
        ("1", {"report_to": "no_such_tracker"}, "no_such_tracker is not installed: pip install no_such_tracker"),
    ],
)
def test_a_run_that_cannot_be(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: str,
    settings: dict,
    message: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    given = {**SETTINGS, "steps": 1, "lattices_per_step": 4, **settings}
    with pytest.raises(ValueError, match=message):
        train_lattices(_model(tokenizer), _Lattices(tokenizer, 4), 0, tmp_path, **given)


class _Count(TrainerCallback):
    steps = 0

    def on_step_end(self, *arguments: object, **more: object) -> None:
        self.steps += 1


def test_callbacks_are_told_every_step(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    count = _Count()
    given = {**SETTINGS, "steps": 3, "lattices_per_step": 1, "callbacks": [count]}
    train_lattices(_model(tokenizer), _Lattices(tokenizer, 1), tokenizer.pad_token_id, tmp_path, **given)
    assert count.steps == 3


@pytest.mark.parametrize("broken_checkpoint", [False, True])
def test_killed_and_resumed_equals_unbroken(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, broken_checkpoint: bool
) -> None:
    settings = {**SETTINGS, "steps": 6, "lattices_per_step": 2, "save_every": 2}

    def run(output: Path, deadly: int | None = None) -> PreTrainedModel:
        model = _model(tokenizer)
        dataset = _Lattices(tokenizer, 12, deadly)
        train_lattices(model, dataset, tokenizer.pad_token_id, output, **settings)
        return model

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(_Killed):
        run(tmp_path / "killed", deadly=10)  # in the last step, after the checkpoint of step 4
    if broken_checkpoint:  # killed while it was being written: the one before counts
        (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").unlink()
        (tmp_path / "killed" / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = run(tmp_path / "killed")
    for (name, one), two in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6, msg=name)
    assert [line["step"] for line in _log(tmp_path / "killed")] == [1, 2, 3, 4, 5, 6]
    last = _log(tmp_path / "killed")[-1]
    assert last["step"] == 6
    assert last["loss"] == pytest.approx(_log(tmp_path / "unbroken")[-1]["loss"], rel=1e-5)


def test_plain_model_trains_on_isolated_threads(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 2}))
    dataset = PuzzleLattices(PuzzleMixture(coordinated=False, max_threads=3), tokenizer, 10)
    model.config.max_position_embeddings = 512
    train_lattices(model, dataset, tokenizer.pad_token_id, tmp_path, steps=2, lattices_per_step=2, **SETTINGS)
    assert len(_log(tmp_path)) == 2


def test_loss_of_certain_choices_is_the_cross_entropy_of_the_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[0, :3] = IGNORED
    places = torch.tensor([[1, 2], [2, 5]])
    certain = torch.nn.functional.one_hot(labels[places[:, 0], places[:, 1]], 11).float()
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1))
    count = int((labels[:, 1:] != IGNORED).sum())
    assert lattice_loss(logits, labels, places, certain, count) == pytest.approx(float(expected), rel=1e-5)
    none = lattice_loss(logits, labels, places[:0], certain[:0], count)
    assert none == pytest.approx(float(expected), rel=1e-5)


def test_loss_is_least_at_the_teachers_distribution() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    labels, places = torch.tensor([[IGNORED, 0]]), torch.tensor([[0, 1]])

    def loss(told: list[float]) -> float:
        logits = torch.tensor([[told, told]]).clamp(min=1e-9).log()
        return float(lattice_loss(logits, labels, places, probabilities, 1))

    assert loss([0.5, 0.25, 0.25, 0.0]) == pytest.approx(1.5 * 0.6931472, rel=1e-4)
    assert all(loss(other) > loss([0.5, 0.25, 0.25, 0.0]) for other in ([0.6, 0.2, 0.2, 0.0], [0.25] * 4))
