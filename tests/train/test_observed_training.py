"""Training runs log what their lattices do, and only on the steps that say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lace.data.assemble import AssembledLattice
from lace.data.collate import LatticeCollator
from lace.data.puzzle_mixture import PuzzleLattices, PuzzleMixture
from lace.lattice.graft import graft, lattice_off
from lace.lattice.observe import lattice_metrics, observe_lattice
from lace.train.grpo import GRPOSettings, LatticeGRPO, Question
from lace.train.sft import train_lattices
from tiny import SHAPE, tiny_config


class _Lattices(Dataset[AssembledLattice]):
    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.source = PuzzleLattices(PuzzleMixture(coordinated=True, max_threads=3, four_numbers=0.0), tokenizer, 4)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> AssembledLattice:
        return self.source[index % 4]


class _Same:
    def __getitem__(self, index: int) -> Question:
        return Question("Use 3, 7 and 12 to make 33", lambda answer: False)


def _model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(**{**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "head_dim": 8})
    config.max_position_embeddings = 512
    return graft(Qwen3ForCausalLM(config), tiny_config())


def _train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, output: Path, **more: int) -> list[dict]:
    settings = {"steps": 1, "lattices_per_step": 4, "log_every": 1, **more}
    train_lattices(model, _Lattices(tokenizer), tokenizer.pad_token_id, output, learning_rate=1e-3, **settings)
    return _log(output)


def _log(output: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


KEYS = {"gate/1", "cross_thread_attention/1"}


def _observed(line: dict[str, float]) -> dict[str, float]:
    return {name: line[name] for name in line if "/" in name}


def test_supervised_training_observes_the_whole_batch(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """However it is split into micro-batches."""
    model, items = _model(tokenizer), _Lattices(tokenizer)
    batch = LatticeCollator(tokenizer.pad_token_id, len(tokenizer))([items[n] for n in range(4)])
    for name in ("labels", "choice_places", "choice_probabilities"):
        del batch[name]
    with observe_lattice(model) as found:
        model(**batch)
    expected = lattice_metrics(found)
    assert expected.keys() == KEYS
    assert all(0 < value < 1 for value in expected.values())
    for accumulate in (1, 4):
        (line,) = _train(_model(tokenizer), tokenizer, tmp_path / str(accumulate), accumulate=accumulate)
        assert _observed(line) == pytest.approx(expected, rel=1e-4)


def test_supervised_training_observes_when_it_logs(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = []

    def counting(model: PreTrainedModel) -> object:
        observations.append(model)
        return observe_lattice(model)

    monkeypatch.setattr("lace.train.sft.observe_lattice", counting)
    lines = _train(_model(tokenizer), tokenizer, tmp_path, steps=4, log_every=2)
    assert [line["step"] for line in lines] == [2, 4]
    assert all(_observed(line).keys() == KEYS for line in lines)
    assert len(observations) == 2


def test_a_lattice_that_is_off_logs_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = _model(tokenizer)
    with lattice_off(model):
        (line,) = _train(model, tokenizer, tmp_path)
    assert _observed(line) == {}


@pytest.mark.parametrize("strategy", ["lace", "independent"])
def test_grpo_observes_now_and_then(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr("lace.train.grpo.OBSERVE_EVERY", 2)
    settings = GRPOSettings(
        steps=3,
        strategy=strategy,
        threads=(3,),
        max_tokens=8,
        questions_per_step=1,
        lattices_per_question=4,
        lattices_per_forward=2,
    )
    LatticeGRPO(_model(tokenizer), tokenizer, _Same(), settings, tmp_path).train()
    lines = _log(tmp_path)
    expected = [KEYS, set(), KEYS] if strategy == "lace" else [set()] * 3
    assert [set(_observed(line)) for line in lines] == expected
    assert all(0 < value < 1 for line in lines for value in _observed(line).values())
