"""Lattice GRPO: reinforcement learning in which one rollout is a whole lattice of N threads.

One step, with G questions and K lattices for each:

    rollout      engine.generate, on policy                              -> G K lattices of N threads
    reward       of each lattice (lace.train.rewards)                    -> (G, K)
    advantage    within the group of its question (policy_loss.py)       -> (G, K), shared by the N threads
    learn        log-probabilities anew, in the layout they were sampled in, whole lattices a micro-batch

Other questions can be rehearsed beside them: nothing is to be earned there, but the model is to answer them as the
reference would (pseudorehearsal, Robins 1995), since what is learned in one task is else paid for in another.

The unit of shuffling, micro-batching and accumulation is the lattice, never a row. Processes of `accelerate launch`
share the questions of a step; the loss is averaged over the tokens of all of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.optimization import Adafactor

from lace.data.assemble import AssembledLattice
from lace.data.collate import IGNORED, LatticeCollator
from lace.engine.engine import Engine
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams
from lace.engine.threads import opening_ids
from lace.lattice.config import MAX_THREADS
from lace.lattice.graft import LAYOUT_ARGUMENTS, lattice_layers, lattice_parameters, thread_gradients_cut
from lace.lattice.observe import LayerObservation, lattice_metrics, observe_lattice
from lace.train import run_log
from lace.train.embedding_diversity import EmbeddingDiversity
from lace.train.policy_loss import (
    divergence,
    group_advantages,
    policy_loss,
    pooled_advantages,
    thread_advantages,
    token_logprobs,
)
from lace.train.rewards import LatticeReward, RewardWeights, diversity_of_tokens, independent_reward, lattice_reward
from lace.train.sharding import gathered

OBSERVE_EVERY = 10
"""Steps between two observations of the lattice, which cost about as much as a forward pass of its layers."""


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
    """Steps of the whole run."""
    strategy: Literal["lace", "independent"] = "lace"
    """`independent`, a control: the lattice is off, and each thread is rewarded for itself, relative to all threads of
    its question."""
    threads: tuple[int, ...] = (4,)
    """N, threads of a lattice; of several numbers each step takes the next."""
    max_tokens: int = 100
    """Sampled tokens of a thread at most."""
    temperature: float = 1.0
    """Of the rollouts; the policy that learns is the model at this temperature."""
    questions_per_step: int = 4
    """G, over all processes."""
    lattices_per_question: int = 8
    """K, the group that advantages are relative to."""
    lattices_per_forward: int = 8
    """Micro-batch; the gradient does not depend on it."""
    decode_rows: int = 512
    """Threads that decode together at most, on each process; more wait, and take less memory so."""
    updates: int = 1
    """Optimiser steps on the same rollouts; 1 is on-policy."""
    learning_rate: float = 1e-5
    """Constant after the warm-up."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """`adafactor` keeps next to no state (arXiv 1804.04235); AdamW keeps twice the size of what is trained."""
    bf16: bool = False
    """Whether to sample and learn in bfloat16 where that is safe (autocast); the weights stay as they are."""
    gradient_checkpointing: bool = False
    """Whether to keep the inputs of the layers alone and compute the rest again: a third more work, little memory."""
    scale_advantages: bool = True
    """Whether to divide by the standard deviation of the group."""
    clip_low: float = 0.2
    """How far below 1 the ratio of new and old probability may fall before its gradient stops."""
    clip_high: float = 0.28
    """How far above 1."""
    kl_weight: float = 0.0
    """Weight of the divergence from the reference model, which is then needed."""
    rehearsal_lattices: int = 0
    """Lattices of a step, over all processes, that are sampled of other questions; there the model is held to the
    reference."""
    rehearsal_max_tokens: int = 100
    """Sampled tokens of a thread of these at most."""
    rehearsal_weight: float = 1.0
    """Of the divergence there: of whole distributions, in nats a token."""
    cut_thread_gradients: bool = False
    """Whether what threads read of each other counts as given, instead of learning what to write for the others."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    diversity: Literal["tokens", "embeddings"] = "tokens"
    """What threads are compared by: their tokens, or, for text, embeddings of their sentences."""
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id or directory of the encoder, for `embeddings`."""
    seed: int = 0
    """Of the draws of all rollouts."""
    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        counts = ("steps", "max_tokens", "questions_per_step", "lattices_per_forward", "decode_rows", "updates")
        for name in (*counts, "save_every", "rehearsal_max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.threads or not all(1 <= n <= MAX_THREADS for n in self.threads):
            raise ValueError(f"threads must be numbers from 1 to {MAX_THREADS}, not {list(self.threads)}")
        for name in ("rehearsal_lattices", "rehearsal_weight", "kl_weight"):
            if not getattr(self, name) >= 0:  # nor may it be no number
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}: rollouts have to differ")
        if self.temperature != 1 and self.updates != 1:
            raise ValueError("updates above 1 need temperature 1: the engine tells log-probabilities at temperature 1")
        if self.lattices_per_question < 2:
            raise ValueError("lattices_per_question must be at least 2: an advantage is relative to others")
        if self.strategy not in ("lace", "independent"):
            raise ValueError(f"strategy must be lace or independent, not {self.strategy!r}")
        if self.diversity not in ("tokens", "embeddings"):
            raise ValueError(f"diversity must be tokens or embeddings, not {self.diversity!r}")


@dataclass(frozen=True)
class Rollout:
    """One lattice, sampled by this process in this step, and what it earned."""

    result: LatticeResult
    lattice: AssembledLattice
    """Its tokens, as they stood while it was sampled."""
    reward: LatticeReward
    advantages_N: torch.Tensor
    """Of its threads."""


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


@contextmanager
def checkpointing_layers(model: PreTrainedModel) -> Iterator[None]:
    """Within the block layers with gradient checkpointing use it, which transformers ties to the training mode. What is
    inside of them stays in evaluation mode, without dropout."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


class LatticeGRPO:
    """The training loop.

    Args:
        model: grafted; all parameters that require gradients are trained.
        tokenizer: the model's.
        questions: what to ask.
        settings: of the run.
        output: folder of checkpoints and of `log.jsonl`; a run found there goes on.
        reference: a frozen model for `kl_weight` and rehearsal.
        rehearsal: what to rehearse, for `rehearsal_lattices`.
        report_to: a tracker of accelerate besides `log.jsonl`, e.g. tensorboard or trackio.
        on_start: is told the step that the run begins with or goes on from.
        on_step: is told each finished step and its metrics.

    Raises:
        ValueError: if the model carries no lattice that the strategy needs, the questions of a step cannot be shared by
            the processes, or the reference, the rehearsal, the sentence encoder or the tracker is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Questions,
        settings: GRPOSettings,
        output: str | Path,
        reference: PreTrainedModel | None = None,
        rehearsal: Questions | None = None,
        report_to: str | None = None,
        on_start: Callable[[int], None] = lambda step: None,
        on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    ) -> None:
        if settings.strategy == "lace" and not lattice_layers(model):
            raise ValueError("this model carries no lattice; graft one first")
        if (settings.kl_weight or settings.rehearsal_lattices) and reference is None:
            raise ValueError("kl_weight and rehearsal_lattices need a reference model")
        if settings.rehearsal_lattices and rehearsal is None:
            raise ValueError("rehearsal_lattices needs questions to rehearse")
        run_log.check_tracker(report_to)
        self.settings, self.tokenizer = settings, tokenizer
        self.questions, self.rehearsal = questions, rehearsal
        self.on_start, self.on_step = on_start, on_step
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if settings.bf16 else "no",
            log_with=report_to,
            project_dir=str(output),
        )
        for shared in ("questions_per_step", "rehearsal_lattices"):
            if getattr(settings, shared) % (processes := self.accelerator.num_processes):
                raise ValueError(
                    f"{shared}, {getattr(settings, shared)}, cannot be shared evenly by {processes} processes"
                )
        self.output = Path(output)
        self.output.mkdir(parents=True, exist_ok=True)
        model.eval()  # dropout would make the log-probabilities others than those sampled from
        # A prepared model's own forward pass may run under autocast, or gather weights.
        self.engine = Engine(model, tokenizer, max_rows=settings.decode_rows, lean=False)
        self.reference = reference.to(self.accelerator.device).eval() if reference is not None else None
        self.diversity: Callable[[LatticeResult], float] = diversity_of_tokens
        if settings.diversity == "embeddings":
            self.diversity = EmbeddingDiversity(settings.embedding_model, self.accelerator.device)
        config: Any = getattr(model, "lattice_config", None)  # typed as a submodule by torch
        self.opening: str = config.opening if config is not None else ""
        if settings.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        vocabulary = model.config.get_text_config().vocab_size
        pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        self.collate = LatticeCollator(pad, vocabulary)
        if settings.strategy == "independent":
            for _, unused in lattice_parameters(model):
                unused.requires_grad_(False)  # DDP would wait for their gradients
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "adafactor":
            optimizer = Adafactor(trained, lr=settings.learning_rate, scale_parameter=False, relative_step=False)
        else:
            optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        self.policy = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.step = 0

    # --- one step ---------------------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        """N, of this step."""
        return self.settings.threads[self.step % len(self.settings.threads)]

    def _sample(self, questions: Sequence[Question], max_tokens: int, first_seed: int) -> list[LatticeResult]:
        """One lattice for each question."""
        s = self.settings
        params = [
            SamplingParams(threads=self.threads, max_tokens=max_tokens, temperature=s.temperature, seed=first_seed + n)
            for n in range(len(questions))
        ]
        with gathered(self.policy):
            return self.engine.generate([question.prompt for question in questions], params, strategy=s.strategy)

    def _share(self, questions: Questions, per_step: int) -> tuple[int, list[Question]]:
        """The questions of this step that are this process's, and the number of the first."""
        share = per_step // self.accelerator.num_processes
        first = self.step * per_step + self.accelerator.process_index * share
        return first, [questions[n] for n in range(first, first + share)]

    def rollout(self) -> list[Rollout]:
        """Samples and rewards the lattices of this step that are this process's share."""
        s = self.settings
        first, questions = self._share(self.questions, s.questions_per_step)
        asked = [question for question in questions for _ in range(s.lattices_per_question)]
        results = self._sample(asked, s.max_tokens, (s.seed << 40) + first * s.lattices_per_question)  # a seed for each
        reward_of = lattice_reward if s.strategy == "lace" else independent_reward
        rewards = [
            reward_of(result, question.check, s.rewards, self.diversity)
            for result, question in zip(results, asked, strict=True)
        ]
        advantages_GKN = self._advantages(rewards)
        lattices = [as_lattice(result, self.tokenizer, self.opening) for result in results]
        return [Rollout(*each) for each in zip(results, lattices, rewards, advantages_GKN.flatten(0, 1), strict=True)]

    def rehearse(self) -> list[AssembledLattice]:
        """Samples what this process rehearses in this step."""
        s = self.settings
        if self.rehearsal is None or not s.rehearsal_lattices:
            return []
        first, questions = self._share(self.rehearsal, s.rehearsal_lattices)
        results = self._sample(questions, s.rehearsal_max_tokens, (s.seed << 40) + (1 << 39) + first)
        return [as_lattice(result, self.tokenizer, self.opening) for result in results]

    def _advantages(self, rewards: list[LatticeReward]) -> torch.Tensor:
        """(G, K, N), of this process's questions."""
        s = self.settings
        groups = (-1, s.lattices_per_question)
        if s.strategy == "independent":
            threads_GKN = torch.tensor([reward.threads for reward in rewards]).view(*groups, self.threads)
            return pooled_advantages(threads_GKN, scale=s.scale_advantages)
        total_GK = torch.tensor([reward.total for reward in rewards]).view(groups)
        right_GKN = torch.tensor([reward.thread_correct for reward in rewards]).view(*groups, self.threads)
        advantages_GK = group_advantages(total_GK, scale=s.scale_advantages)
        return advantages_GK[..., None] + s.rewards.thread * thread_advantages(right_GKN)

    def _as_set(self) -> AbstractContextManager[None]:
        """Within the block forward and backward pass go as the settings say; a layer that is computed again in the
        backward pass has to find what it found before."""
        return thread_gradients_cut(self.policy) if self.settings.cut_thread_gradients else nullcontext()

    def _batch(self, lattices: list[AssembledLattice]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Lattices as arguments of the model, and (R, T - 1) which of their tokens after the first were sampled."""
        batch = self.collate(lattices)
        labels = batch.pop("labels")
        layout = LAYOUT_ARGUMENTS if self.settings.strategy == "independent" else ()
        for name in ("choice_places", "choice_probabilities", *layout):
            del batch[name]
        device = self.accelerator.device
        return {name: tensor.to(device) for name, tensor in batch.items()}, (labels[:, 1:] != IGNORED).to(device)

    def _logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(R, T, V) of the model that learns, with gradient."""
        with self._as_set(), checkpointing_layers(self.policy):
            return cast(torch.Tensor, self.model(**batch, use_cache=False).logits)

    @torch.no_grad()
    def _reference_logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(R, T, V)"""
        assert self.reference is not None
        return cast(torch.Tensor, self.reference(**batch, use_cache=False).logits)

    def loss(self, rollouts: Sequence[Rollout], count: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of some lattices, with gradient, and sums over their tokens for the log.

        Args:
            rollouts: whole lattices.
            count: tokens to average over, see `policy_loss`.
        """
        s = self.settings
        batch, learned_RT = self._batch([rollout.lattice for rollout in rollouts])
        sampled_RT = torch.zeros(learned_RT.shape, device=learned_RT.device)
        told = [p for rollout in rollouts for thread in rollout.result.threads for p in thread.logprobs]
        sampled_RT[learned_RT] = torch.tensor(told, device=learned_RT.device)
        logits = self._logits(batch)
        # For the check alone no graph is kept: it would hold the distributions of all tokens a second time.
        plain_RT = token_logprobs(logits if s.temperature == 1 else logits.detach(), batch["input_ids"])
        gap = (plain_RT.detach() - sampled_RT).abs()[learned_RT].max()
        if s.temperature == 1:
            logprobs_RT = plain_RT
        else:
            logprobs_RT = token_logprobs(logits / s.temperature, batch["input_ids"])
            sampled_RT = logprobs_RT.detach()  # the one update is on policy
        reference_RT = None
        if s.kl_weight:
            reference_RT = token_logprobs(self._reference_logits(batch) / s.temperature, batch["input_ids"])
        loss, clipped = policy_loss(
            logprobs_RT,
            sampled_RT,
            torch.cat([rollout.advantages_N for rollout in rollouts]).to(learned_RT.device),
            learned_RT,
            count,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            reference_RT=reference_RT,
            kl_weight=s.kl_weight,
        )
        return loss, {"clipped": clipped, "logprob_gap": gap}

    def rehearsal_divergence(self, lattices: list[AssembledLattice]) -> torch.Tensor:
        """Of the model from the reference, with gradient, in nats: the sum over the sampled tokens."""
        batch, learned_RT = self._batch(lattices)
        return divergence(self._logits(batch), self._reference_logits(batch), learned_RT)

    def learn(self, rollouts: list[Rollout], rehearsed: Sequence[AssembledLattice] = ()) -> dict[str, float]:
        """One optimiser step on the rollouts and what was rehearsed; returns what to log."""
        s, world = self.settings, self.accelerator.num_processes
        own = float(sum(rollout.result.completion_tokens for rollout in rollouts))
        own_rehearsed = float(sum(sum(map(sum, lattice.learned)) for lattice in rehearsed))
        count, count_rehearsed = self._of_processes([own, own_rehearsed]).sum(0).tolist()
        size = s.lattices_per_forward
        asked = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        kept = [rehearsed[start : start + size] for start in range(0, len(rehearsed), size)]
        loss_sum, clipped, gap, kl = 0.0, 0.0, 0.0, 0.0
        seen: dict[int, list[LayerObservation]] = {}
        for n, part in enumerate(asked):
            last = n + 1 == len(asked) and not kept
            with self._as_set(), nullcontext() if last else self.accelerator.no_sync(self.model):
                observing = n == 0 and self.step % OBSERVE_EVERY == 0  # the first micro-batch of each process
                with observe_lattice(self.policy) if observing else nullcontext(seen) as seen:
                    loss, told = self.loss(part, count)
                self.accelerator.backward(loss * world)  # gradients are averaged over processes, the count is of all
            loss_sum, clipped = loss_sum + loss.item(), clipped + told["clipped"].item()
            gap = max(gap, told["logprob_gap"].item())
        for n, again in enumerate(kept):
            with self._as_set(), nullcontext() if n + 1 == len(kept) else self.accelerator.no_sync(self.model):
                loss = self.rehearsal_divergence(list(again)) / count_rehearsed
                self.accelerator.backward(loss * s.rehearsal_weight * world)
            kl += loss.item()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), s.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * min(1.0, (self.step + 1) / max(1, s.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad()
        told_P4 = self._of_processes([loss_sum, clipped / count, gap, kl])
        loss_sum, clipped, _, kl = told_P4.sum(0).tolist()
        gap = float(told_P4[:, 2].max())
        lattice = lattice_metrics(seen, lambda sums: self._of_processes(sums.flatten().tolist()).sum(0).view(-1, 4))
        learned = {"loss": loss_sum, "clipped": clipped, "logprob_gap": gap, "grad_norm": float(norm), "tokens": count}
        return {**learned, **({"rehearsal_kl": kl} if count_rehearsed else {}), **lattice}

    def _of_processes(self, values: list[float]) -> torch.Tensor:
        """(P, V) the V values of each of the P processes."""
        gathered_PV: torch.Tensor = self.accelerator.gather(torch.tensor([values], device=self.accelerator.device))
        return gathered_PV

    # --- the run ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Runs, or goes on with, the whole training."""
        self._resume()
        self.on_start(self.step)
        self.accelerator.init_trackers("lace")
        while self.step < self.settings.steps:
            started = time.perf_counter()
            rollouts, rehearsed = self.rollout(), self.rehearse()
            sampled = time.perf_counter()
            for _ in range(self.settings.updates):
                learned = self.learn(rollouts, rehearsed)
            self.step += 1
            self._log(rollouts, learned, sampled - started, time.perf_counter() - sampled)
            if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                self._save()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _log(self, rollouts: list[Rollout], learned: dict[str, float], rollout_s: float, learn_s: float) -> None:
        rewards = [rollout.reward for rollout in rollouts]
        earned = {
            "reward": [r.total for r in rewards],
            "acc": [r.correct for r in rewards],
            "mean@N": [sum(r.thread_correct) / len(r.thread_correct) for r in rewards],
            "tag_valid": [r.form for r in rewards],
            "diversity": [r.diversity for r in rewards],
        }
        means = self._of_processes([sum(values) / len(values) for values in earned.values()]).mean(0).tolist()
        seconds = {"rollout_s": round(rollout_s, 3), "learn_s": round(learn_s, 3)}
        line = {**dict(zip(earned, means, strict=True)), **learned, **seconds}
        self.accelerator.log(line, step=self.step)
        if self.accelerator.is_main_process:
            run_log.append(self.output / "log.jsonl", {"step": self.step, **line})
        self.on_step(self.step, line)

    def _save(self) -> None:
        """Writes a checkpoint beside its place and moves it there, so that a kill leaves none that is half written."""
        unfinished = self.output / "unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            target = self.output / f"checkpoint-{self.step}"
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            for old in run_log.checkpoints(self.output)[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        if not (found := run_log.checkpoints(self.output)):
            return
        self.accelerator.load_state(str(found[-1]))
        self.step = run_log.step_of(found[-1])
        if self.accelerator.is_main_process:
            run_log.forget_after(self.output / "log.jsonl", self.step)
