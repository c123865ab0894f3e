"""Lattice GRPO: rewards, advantages and losses by hand, and a loop that learns, splits and resumes as it should."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lace.engine.result import LatticeResult, ThreadResult
from lace.engine.selection import choose_thread
from lace.lattice.graft import graft
from lace.train.grpo import GRPOSettings, LatticeGRPO, Question
from lace.train.policy_loss import divergence, group_advantages, policy_loss, thread_advantages, token_logprobs
from lace.train.rewards import RewardWeights, lattice_reward, token_diversity, well_formed
from tiny import SHAPE, tiny_config, wake


def _result(*threads: tuple[str | None, str | None, list[int]]) -> LatticeResult:
    made = [
        ThreadResult(n, n + 1, "", ids, [-1.0] * len(ids), "eos", tag, answer)  # type: ignore[arg-type]
        for n, (tag, answer, ids) in enumerate(threads)
    ]
    chosen, by = choose_thread([t.tag for t in made], [t.answer for t in made])
    return LatticeResult("?", "lace", made, chosen, by, 1, 1, 1, 0.0, [])


SAME, OTHER = [1, 2, 3, 4], [5, 6, 7, 8]


def test_token_diversity() -> None:
    assert token_diversity([SAME, SAME]) == 0
    assert token_diversity([SAME, OTHER]) == 1
    assert token_diversity([SAME, SAME, OTHER]) == pytest.approx(2 / 3)
    assert token_diversity([[1, 2, 3, 4], [1, 2, 3, 9]]) == pytest.approx(2 / 3)  # one of three runs in common
    assert token_diversity([[1], [1]]) == 0
    assert token_diversity([SAME]) == 0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["best", "fail"], True),
        (["best", "success", "success"], True),
        (["best", "best"], False),
        (["fail", "success"], False),
        (["best", None], False),
    ],
)
def test_well_formed(tags: list, expected: bool) -> None:
    assert well_formed(tags) == expected


def test_lattice_reward() -> None:
    weights = RewardWeights(correct=1.0, form=0.1, diversity=0.2, diversity_cap=0.5)

    def reward(*threads: tuple[str | None, str | None, list[int]]) -> float:
        return lattice_reward(_result(*threads), lambda answer: answer == "right", weights).total

    assert reward(("best", "right", SAME), ("success", "right", SAME)) == pytest.approx(1.1)
    assert reward(("best", "right", SAME), ("fail", None, OTHER)) == pytest.approx(1.1 + 0.2 * 0.5)  # capped
    assert reward(("best", "wrong", SAME), ("fail", "right", OTHER)) == pytest.approx(0.1)  # diversity is not paid
    assert reward(("best", "right", SAME), (None, None, SAME)) == pytest.approx(1.0)  # a tag is missing
    assert reward(("success", "right", SAME), ("success", "right", SAME)) == 0  # right by a vote, but nobody said so
    assert reward(("best", "right", SAME), ("best", "right", SAME)) == 0


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3], [1.0, 0.0, 0.0, 0.0]])
    scaled = group_advantages(rewards)
    torch.testing.assert_close(scaled[0], torch.tensor([1.0, -1.0, -1.0, 1.0]), atol=1e-4, rtol=0)
    assert scaled[1].abs().max() < 1e-6
    torch.testing.assert_close(scaled[2].pow(2).mean(), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(group_advantages(rewards, scale=False)[2], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    own = thread_advantages(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    torch.testing.assert_close(own, torch.tensor([[[0.75, -0.25], [-0.25, -0.25]]]))


def _loss_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    logprobs = -torch.rand(3, 5)
    learned = torch.rand(3, 5) < 0.7
    return logprobs.requires_grad_(), torch.tensor([1.0, -0.5, 0.25]), learned, learned.sum()


def test_on_policy_gradient_is_that_of_reinforce() -> None:
    logprobs, advantages, learned, count = _loss_case()
    loss, clipped = policy_loss(logprobs, logprobs.detach(), advantages, learned, count)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, -(advantages[:, None] * learned) / count)
    assert clipped == 0


def test_clipping_stops_the_gradient_on_the_far_side_only() -> None:
    logprobs = torch.tensor([[0.5, -0.5, 0.25], [0.5, -0.5, 0.25]]).requires_grad_()  # ratios 1.65, 0.61, 1.28
    sampled, learned = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    loss, clipped = policy_loss(logprobs, sampled, torch.tensor([1.0, -1.0]), learned, 6, clip_low=0.2, clip_high=0.3)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert (gradient != 0).tolist() == [[False, True, True], [True, False, True]]
    assert clipped == 2


def test_divergence_from_the_reference() -> None:
    logprobs, advantages, learned, count = _loss_case()
    given = (logprobs, logprobs.detach(), advantages, learned, count)
    plain, _ = policy_loss(*given)
    same, _ = policy_loss(*given, reference_RT=logprobs.detach(), kl_weight=0.5)
    assert same.item() == pytest.approx(plain.item())
    other = logprobs.detach() - 0.3
    far, _ = policy_loss(*given, reference_RT=other, kl_weight=0.5)
    assert (far - plain).item() == pytest.approx(0.5 * (math.exp(-0.3) + 0.3 - 1), rel=1e-4)
    (gradient,) = torch.autograd.grad(far - plain, logprobs)
    assert (gradient[learned] > 0).all()  # down to the reference, which holds these tokens for less likely


def _model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "head_dim": 8}
    return wake(graft(Qwen3ForCausalLM(Qwen3Config(**shape)), tiny_config(opening="Thread {label}:")))


class _Same:
    """The same question again and again, or several in turn."""

    def __init__(self, check: Callable[[str | None], bool] = lambda answer: False) -> None:
        self.check = check

    def __getitem__(self, index: int) -> Question:
        return Question(["Use 3, 7 and 12 to make 33", "Use 2 and 5 to make 7"][index % 2], self.check)


SETTINGS = GRPOSettings(
    steps=4,
    threads=(3,),
    max_tokens=8,
    questions_per_step=2,
    lattices_per_question=4,
    learning_rate=3e-3,
    warmup_steps=1,
    save_every=2,
)


@pytest.fixture
def earn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random model earns now and then: the share of even ids among the sampled tokens."""

    def reward(result: LatticeResult, *arguments: object) -> object:
        ids = [token for thread in result.threads for token in thread.token_ids]
        return replace(lattice_reward(result, lambda answer: False), total=sum(n % 2 == 0 for n in ids) / len(ids))

    monkeypatch.setattr("lace.train.grpo.lattice_reward", reward)


def _log(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_sampled_and_recomputed_logprobs_agree(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Same(), SETTINGS, tmp_path)
    rollouts = trainer.rollout()
    assert len({str(rollout.lattice.tokens) for rollout in rollouts}) == 8  # seeds differ
    _, told = trainer.loss(rollouts, 1)
    assert told["logprob_gap"] < 1e-4


@pytest.mark.parametrize("held", [{}, {"kl_weight": 0.1}, {"rehearsal_lattices": 4, "rehearsal_weight": 0.1}])
def test_gradient_does_not_depend_on_micro_batches(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, earn: None, held: dict
) -> None:
    gradients, told = [], []
    reference = _model(tokenizer, seed=1).eval() if held else None
    for size in (8, 3, 1):
        settings = replace(SETTINGS, lattices_per_forward=size, learning_rate=0.0, **held)
        trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Same(), settings, tmp_path, reference, _Same())
        rollouts, rehearsed = trainer.rollout(), trainer.rehearse()
        assert torch.stack([rollout.advantages_N for rollout in rollouts]).abs().max() > 0.5
        seen: dict[str, torch.Tensor] = {}

        def keep(*_: object, seen: dict = seen, model: PreTrainedModel = trainer.policy) -> None:
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        trainer.optimizer.optimizer.register_step_pre_hook(keep)
        told.append(trainer.learn(rollouts, rehearsed))
        gradients.append(seen)
    for other in told[1:]:
        assert other.keys() == told[0].keys()
        for name in {"loss", "grad_norm", "rehearsal_kl"} & other.keys():
            assert other[name] == pytest.approx(told[0][name], rel=1e-4, abs=1e-6)
    assert gradients[0]
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-7, msg=name)


def test_gradient_through_the_lattice_is_kept_or_cut(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, earn: None
) -> None:
    """The loss of thread 0 alone moves what threads 1 and 2 write only if the gradient may pass."""
    flows = {}
    for cut in (False, True):
        settings = replace(SETTINGS, cut_thread_gradients=cut)
        trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Same(), settings, tmp_path)
        longest = max(trainer.rollout(), key=lambda r: min(map(len, r.lattice.tokens)))
        embedded: list[torch.Tensor] = []

        def keep(module: object, args: object, output: torch.Tensor, embedded: list = embedded) -> None:
            output.retain_grad()
            embedded.append(output)

        hook = trainer.policy.get_input_embeddings().register_forward_hook(keep)
        loss, _ = trainer.loss([replace(longest, advantages_N=torch.tensor([1.0, 0.0, 0.0]))], 1)
        hook.remove()
        loss.backward()
        assert embedded[0].grad is not None
        flows[cut] = (loss.item(), embedded[0].grad.abs().sum(dim=(1, 2)))
    assert flows[True][0] == flows[False][0]
    assert (flows[False][1] > 0).all()
    assert (flows[True][1] > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reward_rises(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, earn: None, temperature: float) -> None:
    settings = replace(SETTINGS, steps=40, lattices_per_question=8, learning_rate=1e-2, save_every=100)
    settings = replace(settings, temperature=temperature)
    LatticeGRPO(_model(tokenizer), tokenizer, _Same(), settings, tmp_path).train()
    rewards = [line["reward"] for line in _log(tmp_path)]
    assert sum(rewards[:5]) / 5 < 0.55
    assert sum(rewards[-5:]) / 5 > 0.7
    assert all(line["clipped"] == 0 and line["logprob_gap"] < 1e-3 for line in _log(tmp_path))


def test_killed_and_resumed_equals_unbroken(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, earn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, threads=(3, 2), rehearsal_lattices=2)

    def run(output: Path) -> PreTrainedModel:
        model = _model(tokenizer)
        LatticeGRPO(model, tokenizer, _Same(), settings, output, _model(tokenizer, seed=1), _Same()).train()
        return model

    unbroken = run(tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        learn = LatticeGRPO.learn

        def deadly(self: LatticeGRPO, rollouts: object, rehearsed: object) -> dict[str, float]:
            if self.step == 3:
                raise KeyboardInterrupt
            return learn(self, rollouts, rehearsed)  # type: ignore[arg-type]

        patch.setattr(LatticeGRPO, "learn", deadly)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    assert [line["step"] for line in _log(tmp_path / "killed")] == [1, 2, 3]
    resumed = run(tmp_path / "killed")
    assert [line["step"] for line in _log(tmp_path / "killed")] == [1, 2, 3, 4]
    for (name, one), two in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6, msg=name)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "log.jsonl",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lattices_per_question": 1}, "lattices_per_question must be at least 2"),
        ({"threads": (4, 0)}, r"threads must be numbers from 1 to 256, not \[4, 0\]"),
        ({"threads": (257,)}, r"threads must be numbers from 1 to 256, not \[257\]"),
        ({"threads": ()}, "threads must be numbers from 1 to 256"),
        ({"rehearsal_weight": -1.0}, "rehearsal_weight must be 0 or more, not -1.0"),
        ({"kl_weight": float("nan")}, "kl_weight must be 0 or more, not nan"),
        ({"lattices_per_forward": 0}, "lattices_per_forward must be at least 1"),
        ({"diversity": "words"}, "diversity must be tokens or embeddings, not 'words'"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"temperature": 0.7, "updates": 2}, "updates above 1 need temperature 1"),
        ({"strategy": "swapped"}, "strategy must be lace or independent, not 'swapped'"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **wrong)


def test_a_run_that_cannot_be(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need a reference model"):
        LatticeGRPO(_model(tokenizer), tokenizer, _Same(), replace(SETTINGS, kl_weight=0.1), tmp_path)
    rehearsing = replace(SETTINGS, rehearsal_lattices=2)
    with pytest.raises(ValueError, match="rehearsal_lattices need a reference model"):
        LatticeGRPO(_model(tokenizer), tokenizer, _Same(), rehearsing, tmp_path, rehearsal=_Same())
    with pytest.raises(ValueError, match="needs questions to rehearse"):
        LatticeGRPO(_model(tokenizer), tokenizer, _Same(), rehearsing, tmp_path, _model(tokenizer))
    with pytest.raises(ValueError, match="carries no lattice"):
        LatticeGRPO(Qwen3ForCausalLM(Qwen3Config(**SHAPE)), tokenizer, _Same(), SETTINGS, tmp_path)
    embeddings = replace(SETTINGS, diversity="embeddings", embedding_model=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="cannot read the sentence encoder"):
        LatticeGRPO(_model(tokenizer), tokenizer, _Same(), embeddings, tmp_path)
    with pytest.raises(ValueError, match="no_such_tracker is not installed"):
        LatticeGRPO(_model(tokenizer), tokenizer, _Same(), SETTINGS, tmp_path, report_to="no_such_tracker")


def test_steps_take_their_numbers_of_threads_in_turns(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    settings = replace(SETTINGS, threads=(3, 2), rehearsal_lattices=3, rehearsal_max_tokens=5)
    trainer = LatticeGRPO(_model(tokenizer), tokenizer, _Same(), settings, tmp_path, _model(tokenizer), _Same())
    seen = []
    for trainer.step in range(3):
        rollouts, rehearsed = trainer.rollout(), trainer.rehearse()
        widths = {len(rollout.result.threads) for rollout in rollouts} | {len(each.tokens) for each in rehearsed}
        seen.append(widths)
        assert [rollout.advantages_N.shape for rollout in rollouts] == [(*widths,)] * 8
        assert len(rehearsed) == 3
        assert all(sum(learned) <= 5 for lattice in rehearsed for learned in lattice.learned)
    assert seen == [{3}, {2}, {3}]


def test_rehearsal_holds_the_model_to_the_reference(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Nothing is earned here, so that all that can be learned is to be as the reference, which another seed made."""
    settings = replace(SETTINGS, steps=30, rehearsal_lattices=4, rehearsal_weight=3.0, learning_rate=1e-2)
    settings = replace(settings, rewards=RewardWeights(correct=0.0, form=0.0, diversity=0.0))
    reference = _model(tokenizer, seed=1)
    before = {name: p.detach().clone() for name, p in reference.named_parameters()}
    LatticeGRPO(_model(tokenizer), tokenizer, _Same(), settings, tmp_path, reference, _Same()).train()
    divergences = [line["rehearsal_kl"] for line in _log(tmp_path)]
    assert divergences[-1] < 0.3 * divergences[0]
    assert all(line["loss"] == 0 for line in _log(tmp_path))
    assert all(torch.equal(p, before[name]) for name, p in reference.named_parameters())


def test_divergence_of_whole_distributions() -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    learned = torch.tensor([[True, False, True], [False, False, True]])
    expected = 0.0
    for row, place in ((0, 0), (0, 2), (1, 2)):
        p, q = reference[row, place].softmax(-1), logits[row, place].softmax(-1)
        expected += float((p * (p / q).log()).sum())
    assert float(divergence(logits, reference, learned)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tracker_is_told_every_step(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    LatticeGRPO(_model(tokenizer), tokenizer, _Same(), SETTINGS, tmp_path, report_to="tensorboard").train()
    told = EventAccumulator(str(tmp_path / "lace")).Reload().Scalars("diversity")
    assert [(event.step, event.value) for event in told] == [
        (line["step"], pytest.approx(line["diversity"])) for line in _log(tmp_path)
    ]


def test_logprobs_of_tokens() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 4, 7), torch.randint(0, 7, (2, 4))
    expected = torch.stack([torch.log_softmax(logits[:, n], -1)[torch.arange(2), ids[:, n + 1]] for n in range(3)], 1)
    torch.testing.assert_close(token_logprobs(logits, ids), expected)
    assert token_logprobs(logits.bfloat16(), ids).dtype == torch.float32
