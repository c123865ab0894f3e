"""Settings of Lattice GRPO: independent threads, and what saves memory without changing the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lace.engine.result import LatticeResult, ThreadResult
from lace.engine.selection import choose_thread
from lace.lattice.graft import graft
from lace.train.grpo import GRPOSettings, LatticeGRPO, Question, Rollout
from lace.train.policy_loss import group_advantages, pooled_advantages
from lace.train.rewards import RewardWeights, independent_reward
from tiny import SHAPE, tiny_config, wake


def test_independent_threads_are_rewarded_each_for_itself() -> None:
    threads = [("success", "right"), ("fail", None), (None, "right"), ("success", "wrong")]
    made = [
        ThreadResult(n, n + 1, "", [n, 1, 2, 3], [-1.0] * 4, "eos", tag, answer)  # type: ignore[arg-type]
        for n, (tag, answer) in enumerate(threads)
    ]
    chosen, by = choose_thread([t.tag for t in made], [t.answer for t in made])
    result = LatticeResult("?", "independent", made, chosen, by, 1, 16, 4, 0.0, [])
    reward = independent_reward(result, lambda answer: answer == "right", RewardWeights(correct=1.0, form=0.1))
    assert reward.threads == pytest.approx((1.1, 0.1, 1.0, 0.1))
    assert reward.total == pytest.approx(2.3 / 4)
    assert (reward.correct, reward.form) == (1.0, 0.75)
    assert reward.thread_correct == (1.0, 0.0, 1.0, 0.0)


def test_pooled_advantages_are_relative_to_all_threads_of_a_question() -> None:
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    plain = pooled_advantages(rewards, scale=False)
    torch.testing.assert_close(plain[0], torch.tensor([[0.75, -0.25], [-0.25, -0.25]]))
    assert plain[1].abs().max() == 0
    scaled = pooled_advantages(rewards)
    torch.testing.assert_close(scaled[0].flatten(), group_advantages(rewards[0].view(1, 4))[0])


def _model(tokenizer: PreTrainedTokenizerFast, grafted: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "head_dim": 8}
    base = Qwen3ForCausalLM(Qwen3Config(**shape))
    return wake(graft(base, tiny_config(opening="Thread {label}:"))) if grafted else base


class _Questions:
    def __getitem__(self, index: int) -> Question:
        return Question(["Use 3, 7 and 12 to make 33", "Use 2 and 5 to make 7"][index % 2], lambda answer: False)


SETTINGS = GRPOSettings(
    steps=2,
    threads=(3,),
    max_tokens=8,
    questions_per_step=2,
    lattices_per_question=2,
    learning_rate=1e-3,
    warmup_steps=1,
)


def _with_advantages(rollouts: list[Rollout]) -> list[Rollout]:
    """Random models earn nothing, so advantages are made up."""
    return [replace(r, advantages_N=torch.tensor([1.0, -0.5, 0.25]) * (1 + n)) for n, r in enumerate(rollouts)]


@pytest.mark.parametrize("grafted", [True, False])
def test_independent_rollouts_are_recomputed_without_the_lattice(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, grafted: bool
) -> None:
    model = _model(tokenizer, grafted)
    settings = replace(SETTINGS, strategy="independent")
    trainer = LatticeGRPO(model, tokenizer, _Questions(), settings, tmp_path)
    rollouts = trainer.rollout()
    assert {r.result.strategy for r in rollouts} == {"independent"}
    assert [r.advantages_N.shape for r in rollouts] == [(3,)] * 4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    told = trainer.learn(_with_advantages(rollouts))
    assert told["logprob_gap"] < 1e-4
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lattice." in name), name


def _gradients(trainer: LatticeGRPO, rollouts: list[Rollout]) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        seen.update({name: p.grad.clone() for name, p in trainer.policy.named_parameters() if p.grad is not None})

    hook = trainer.optimizer.optimizer.register_step_pre_hook(keep)
    trainer.learn(rollouts)
    hook.remove()
    return seen


@pytest.mark.parametrize("cut", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, cut: bool
) -> None:
    found = []
    for checkpointing in (False, True):
        settings = replace(SETTINGS, cut_thread_gradients=cut, gradient_checkpointing=checkpointing)
        trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Questions(), settings, tmp_path)
        rollouts = _with_advantages(trainer.rollout())
        found.append(_gradients(trainer, rollouts))
        assert not trainer.policy.training
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_few_rows_at_a_time_sample_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    ids = []
    for rows in (512, 3):
        trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Questions(), replace(SETTINGS, decode_rows=rows), tmp_path)
        ids.append([[t.token_ids for t in rollout.result.threads] for rollout in trainer.rollout()])
    assert ids[0] == ids[1]


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate takes a precision once in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_autocast_samples_and_learns_alike(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, fresh_accelerate: None
) -> None:
    settings = replace(SETTINGS, bf16=True, optimizer="adafactor")
    trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Questions(), settings, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    told = trainer.learn(_with_advantages(trainer.rollout()))
    assert 0 < told["logprob_gap"] < 0.1  # bfloat16 rounds to 3 places
    assert all(p.dtype == torch.float32 for p in trainer.policy.parameters())
    assert sum(not torch.equal(p, before[name]) for name, p in trainer.policy.named_parameters()) > 10
