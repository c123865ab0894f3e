"""Lattice GRPO: reinforcement learning in which one rollout is a whole lattice of N threads.

One step, with G questions and K lattices for each:

    rollout      engine.generate, on policy, at temperature 1            -> G K lattices of N threads
    reward       of each lattice (lace.train.rewards)                    -> (G, K)
    advantage    within the group of its question (policy_loss.py)       -> (G, K), shared by the N threads
    learn        log-probabilities anew, in the layout they were sampled in, whole lattices a micro-batch

The unit of shuffling, micro-batching and accumulation is the lattice, never a row. Processes of `accelerate launch`
share the questions of a step; the loss is averaged over the tokens of all of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lace.data.assemble import AssembledLattice
from lace.data.collate import IGNORED, LatticeCollator
from lace.engine.engine import Engine, opening_ids
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams
from lace.lattice.graft import lattice_layers, thread_gradients_cut
from lace.train import run_log
from lace.train.policy_loss import group_advantages, policy_loss, thread_advantages, token_logprobs
from lace.train.rewards import LatticeReward, RewardWeights, lattice_reward


@dataclass(frozen=True)
class Question:
    """A prompt, and whether an answer to it is right."""

    prompt: str
    check: Callable[[str | None], bool]


class Questions(Protocol):
    """An endless stream: question n is always the same, so that a resumed run sees what an unbroken one would."""

    def __getitem__(self, index: int, /) -> Question: ...


@dataclass(frozen=True)
class GRPOSettings:
    """Of one run.

    Raises:
        ValueError: one line, for numbers that do not fit together.
    """

    steps: int
    threads: int = 4
    """N, threads of a lattice."""
    max_tokens: int = 100
    """Sampled tokens of a thread at most."""
    questions_per_step: int = 4
    """G, over all processes."""
    lattices_per_question: int = 8
    """K, the group that advantages are relative to."""
    lattices_per_forward: int = 8
    """Micro-batch; the gradient does not depend on it."""
    updates: int = 1
    """Optimiser steps on the same rollouts; 1 is on-policy."""
    learning_rate: float = 1e-5
    warmup_steps: int = 10
    max_grad_norm: float = 1.0
    scale_advantages: bool = True
    """Whether to divide by the standard deviation of the group."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.0
    """Weight of the divergence from the reference model, which is then needed."""
    cut_thread_gradients: bool = False
    """Whether what threads read of each other counts as given, instead of learning what to write for the others."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "threads", "max_tokens", "questions_per_step", "updates", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lattices_per_question < 2:
            raise ValueError("lattices_per_question must be at least 2: an advantage is relative to others")
        if self.lattices_per_forward < 1:
            raise ValueError(f"lattices_per_forward must be at least 1, not {self.lattices_per_forward}")


@dataclass(frozen=True)
class Rollouts:
    """The lattices of one step and process, question by question, with what they earned."""

    results: list[LatticeResult]
    rewards: list[LatticeReward]
    advantages: list[torch.Tensor]
    """(N,) for each lattice."""


def as_lattice(result: LatticeResult, tokenizer: PreTrainedTokenizerBase, opening: str) -> AssembledLattice:
    """The tokens of a rollout, as they stood while it was sampled; what was sampled is learned."""
    prompt_ids = cast(list[int], tokenizer(result.prompt)["input_ids"])
    tokens, learned = [], []
    for thread in result.threads:
        given = opening_ids(tokenizer, opening, thread.label)
        tokens.append([*given, *thread.token_ids])
        learned.append([False] * len(given) + [True] * len(thread.token_ids))
    nothing: list[dict[int, dict[int, float]]] = [{} for _ in tokens]
    return AssembledLattice(prompt_ids, [thread.label for thread in result.threads], tokens, learned, nothing)


class LatticeGRPO:
    """The training loop.

    Args:
        model: grafted; all parameters that require gradients are trained.
        tokenizer: the model's.
        questions: what to ask.
        settings: of the run.
        output: folder of checkpoints and of `log.jsonl`; a run found there goes on.
        reference: a frozen model for `kl_weight`.

    Raises:
        ValueError: if the model carries no lattice, the questions of a step cannot be shared by the processes, or the
            reference is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Questions,
        settings: GRPOSettings,
        output: str | Path,
        reference: PreTrainedModel | None = None,
    ) -> None:
        if not lattice_layers(model):
            raise ValueError("this model carries no lattice; graft one first")
        if settings.kl_weight and reference is None:
            raise ValueError("kl_weight needs a reference model")
        self.settings, self.tokenizer, self.questions, self.reference = settings, tokenizer, questions, reference
        self.accelerator = Accelerator()
        if settings.questions_per_step % self.accelerator.num_processes:
            raise ValueError(
                f"{settings.questions_per_step} questions a step cannot be shared evenly by "
                f"{self.accelerator.num_processes} processes"
            )
        self.output = Path(output)
        self.output.mkdir(parents=True, exist_ok=True)
        model.eval()  # dropout would make the log-probabilities others than those sampled from
        self.engine = Engine(model, tokenizer)
        config: Any = model.lattice_config  # typed as a submodule by torch
        self.opening: str = config.opening
        vocabulary = model.config.get_text_config().vocab_size
        pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        self.collate = LatticeCollator(pad, vocabulary)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        self.policy = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.step = 0

    # --- one step ---------------------------------------------------------------------------------------------------

    def rollout(self) -> Rollouts:
        """Samples and rewards the lattices of this step that are this process's share."""
        s = self.settings
        share = s.questions_per_step // self.accelerator.num_processes
        first = self.step * s.questions_per_step + self.accelerator.process_index * share
        asked = [self.questions[n] for n in range(first, first + share) for _ in range(s.lattices_per_question)]
        seeds = (s.seed << 40) + first * s.lattices_per_question  # unlike any other of the run
        params = [SamplingParams(threads=s.threads, max_tokens=s.max_tokens, seed=seeds + n) for n in range(len(asked))]
        results = self.engine.generate([question.prompt for question in asked], params)
        rewards = [
            lattice_reward(result, question.check, s.rewards) for result, question in zip(results, asked, strict=True)
        ]
        groups = (share, s.lattices_per_question)
        advantages_GK = group_advantages(
            torch.tensor([reward.total for reward in rewards]).view(groups), scale=s.scale_advantages
        )
        own_GKN = thread_advantages(torch.tensor([reward.thread_correct for reward in rewards]).view(*groups, -1))
        advantages_GKN = advantages_GK[..., None] + s.rewards.thread * own_GKN
        return Rollouts(results, rewards, list(advantages_GKN.flatten(0, 1)))

    def loss(
        self, results: list[LatticeResult], advantages: list[torch.Tensor], count: torch.Tensor | int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of some lattices, with gradient, and sums over their tokens for the log.

        Args:
            results: whole lattices.
            advantages: (N,) for each.
            count: tokens to average over, see `policy_loss`.
        """
        s, device = self.settings, self.accelerator.device
        batch = self.collate([as_lattice(result, self.tokenizer, self.opening) for result in results])
        labels = batch.pop("labels")
        for name in ("choice_places", "choice_probabilities"):
            del batch[name]
        learned_RT = labels[:, 1:] != IGNORED
        sampled_RT = torch.zeros(learned_RT.shape)
        sampled_RT[learned_RT] = torch.tensor([p for r in results for thread in r.threads for p in thread.logprobs])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        learned_RT, sampled_RT = learned_RT.to(device), sampled_RT.to(device)
        with thread_gradients_cut(self.policy) if s.cut_thread_gradients else nullcontext():
            logits = self.model(**batch, use_cache=False).logits
        logprobs_RT = token_logprobs(logits, batch["input_ids"])
        reference_RT = None
        if self.reference is not None and s.kl_weight:
            with torch.no_grad():
                reference_RT = token_logprobs(self.reference(**batch, use_cache=False).logits, batch["input_ids"])
        loss, clipped = policy_loss(
            logprobs_RT,
            sampled_RT,
            torch.cat(advantages).to(device),
            learned_RT,
            count,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            reference_RT=reference_RT,
            kl_weight=s.kl_weight,
        )
        gap = (logprobs_RT.detach() - sampled_RT).abs()[learned_RT].max()
        return loss, {"clipped": clipped, "logprob_gap": gap}

    def learn(self, rollouts: Rollouts) -> dict[str, float]:
        """One optimiser step on the rollouts; returns what to log."""
        s, world = self.settings, self.accelerator.num_processes
        own = sum(len(thread.token_ids) for result in rollouts.results for thread in result.threads)
        count = self.accelerator.reduce(torch.tensor(float(own), device=self.accelerator.device), "sum")
        size, total = s.lattices_per_forward, len(rollouts.results)
        sums = {"loss": 0.0, "clipped": 0.0, "logprob_gap": 0.0}
        for start in range(0, total, size):
            part = slice(start, start + size)
            last = start + size >= total
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, told = self.loss(rollouts.results[part], rollouts.advantages[part], count)
                self.accelerator.backward(loss * world)  # gradients are averaged over processes, the count is of all
            sums["loss"] += loss.item()
            sums["clipped"] += told["clipped"].item() / count.item()
            sums["logprob_gap"] = max(sums["logprob_gap"], told["logprob_gap"].item())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), s.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * min(1.0, (self.step + 1) / max(1, s.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**sums, "grad_norm": float(norm), "tokens": count.item()}

    # --- the run ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Runs, or goes on with, the whole training."""
        self._resume()
        while self.step < self.settings.steps:
            started = time.perf_counter()
            rollouts = self.rollout()
            sampled = time.perf_counter()
            for _ in range(self.settings.updates):
                learned = self.learn(rollouts)
            self.step += 1
            self._log(rollouts, learned, sampled - started, time.perf_counter() - sampled)
            if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                self._save()

    def _log(self, rollouts: Rollouts, learned: dict[str, float], rollout_s: float, learn_s: float) -> None:
        def mean(values: list[float]) -> float:
            local = torch.tensor(sum(values) / len(values), device=self.accelerator.device)
            return float(self.accelerator.reduce(local, "mean"))

        rewards = rollouts.rewards
        line: dict[str, Any] = {
            "step": self.step,
            "reward": mean([r.total for r in rewards]),
            "acc": mean([r.correct for r in rewards]),
            "mean@N": mean([sum(r.thread_correct) / len(r.thread_correct) for r in rewards]),
            "tag_valid": mean([r.form for r in rewards]),
            "diversity": mean([r.diversity for r in rewards]),
            **learned,
            "rollout_s": round(rollout_s, 3),
            "learn_s": round(learn_s, 3),
        }
        if self.accelerator.is_main_process:
            run_log.append(self.output / "log.jsonl", line)

    def _save(self) -> None:
        """Writes a checkpoint beside its place and moves it there, so that a kill leaves none that is half written."""
        unfinished = self.output / "unfinished"
        self.accelerator.save_state(str(unfinished), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            target = self.output / f"checkpoint-{self.step}"
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            for old in self._checkpoints()[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _checkpoints(self) -> list[Path]:
        return sorted(self.output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))

    def _resume(self) -> None:
        if not (found := self._checkpoints()):
            return
        self.accelerator.load_state(str(found[-1]))
        self.step = int(found[-1].name.rpartition("-")[2])
        if self.accelerator.is_main_process:
            run_log.forget_after(self.output / "log.jsonl", self.step)
