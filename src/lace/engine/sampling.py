"""What to sample, and the draws themselves.

Every lattice draws from its own generator on the CPU, seeded by its own seed, before decoding starts: one uniform
number for each step and thread. So the draws of a prompt depend neither on what else is in the batch nor on the device.

Shape letters: R rows, V vocabulary, N threads, S steps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lace.lattice.config import LatticeConfig, check_threads

LIKELIEST = (64, 1024)
"""Tokens among which those that top-k and top-p leave are looked for first, and where they are not enough, next."""


@dataclass(frozen=True)
class SamplingParams:
    """How the threads of one prompt are decoded.

    Raises:
        ValueError: one line that names the field and what it may be.
    """

    threads: int = 8
    """N, the threads of the prompt; `MAX_THREADS` at most."""
    max_tokens: int = 256
    """Sampled tokens of each thread at most; the given opening (`Thread 7:`) does not count."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability."""
    top_k: int = 0
    """Sample from this many tokens; 0 for all."""
    seed: int = 0
    """Decides thread labels and draws of this prompt, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end a thread; they are cut off."""
    grace: int | None = 40
    """Early stop: once a thread has closed with `[[best]]`, tokens that the others may still write; None: no limit."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        check_threads(self.threads)
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature must be between 0 and 100, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.top_k < 2**63:
            raise ValueError(f"top_k must be 0 (all tokens) or a number below 2**63, not {self.top_k}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, not {self.seed}")
        if "" in self.stop:
            raise ValueError("stop must not contain the empty text")
        if self.grace is not None and self.grace < 0:
            raise ValueError(f"grace must be None or at least 0, not {self.grace}")


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a thread: those of the model's generation config, else the tokenizer's end token."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = tokenizer.eos_token_id if ends is None else ends
    return frozenset([ends] if isinstance(ends, int) else ends or [])


def draw_thread_ids(params: SamplingParams, config: LatticeConfig | None) -> list[int]:
    """Distinct thread ids, drawn from 1..max_thread_id, or from 1..N where a lattice has more threads than that."""
    largest = max(params.threads, config.max_thread_id if config else params.threads)
    generator = _generator(params.seed)
    return [n + 1 for n in torch.randperm(largest, generator=generator)[: params.threads].tolist()]


def draw_uniforms(params: SamplingParams, steps: int) -> torch.Tensor:
    """(S, N) numbers in [0, 1) that decide every draw of one lattice."""
    generator = _generator(params.seed)
    return torch.rand(steps, params.threads, generator=generator, dtype=torch.float64)


def _generator(seed: int) -> torch.Generator:
    """torch's generator on a processor takes 32 bits of a seed and drops the others."""
    if seed >= 2**32:
        seed = int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=4).digest(), "little")
    return torch.Generator().manual_seed(seed)


def choose_tokens(
    logits_RV: torch.Tensor,
    uniforms_R: torch.Tensor,
    temperature_R: torch.Tensor,
    top_k_R: torch.Tensor,
    top_p_R: torch.Tensor,
    truncate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one token per row by inverting the cumulative distribution at the given uniform numbers.

    Args:
        logits_RV: any floating-point dtype.
        uniforms_R: float64 in [0, 1).
        temperature_R: float32; rows with 0 are greedy.
        top_k_R: int64, 0 for no limit.
        top_p_R: float32, 1 for no limit.
        truncate: whether any row has a limit; without one there is nothing to sort.

    Returns:
        Tokens (R,), and their log-probabilities (R,) under the model's own distribution: temperature 1, not truncated.
    """
    logprobs_RV = logits_RV.float().log_softmax(dim=-1)
    greedy_R = temperature_R == 0
    # The largest is taken off first, so that a tiny temperature cannot overflow.
    best_R1, best_tokens_R1 = logprobs_RV.max(dim=-1, keepdim=True)
    # In place, since new memory for each of so many numbers takes longer than computing them; and not normalized.
    weights_RV = logprobs_RV.double().sub_(best_R1).div_(torch.where(greedy_R, 1.0, temperature_R)[:, None]).exp_()
    if truncate:
        weights_RV *= _kept(weights_RV / weights_RV.sum(dim=-1, keepdim=True), top_k_R, top_p_R)
    cdf_RV = weights_RV.cumsum_(dim=-1)
    drawn_R1 = torch.searchsorted(cdf_RV, uniforms_R[:, None] * cdf_RV[:, -1:], right=True)
    drawn_R1 = drawn_R1.clamp(max=logits_RV.shape[1] - 1)
    tokens_R1 = torch.where(greedy_R[:, None], best_tokens_R1, drawn_R1)
    return tokens_R1[:, 0], logprobs_RV.gather(1, tokens_R1)[:, 0]


def _kept(probs_RV: torch.Tensor, top_k_R: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """Which tokens top-k and top-p leave, (R, V); all of them in rows without a limit.

    Sorting a whole vocabulary takes longer than the model's step on a CPU, so the likeliest tokens are tried first; the
    answer is the same.
    """
    vocabulary = probs_RV.shape[1]
    free_R = (top_k_R == 0) & (top_p_R == 1)
    for count in LIKELIEST:
        if vocabulary <= 2 * count:
            break
        # Sorted by token first, for of equally likely tokens the first are kept.
        order_RF = probs_RV.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
        kept_RF, sorted_RF, order_RF = _kept_of(order_RF, probs_RV, top_k_R, top_p_R)
        last_R1 = kept_RF.sum(dim=-1, keepdim=True) - 1
        # Tokens that were not looked at may be as likely as the least likely one that was, but no likelier.
        inside_R = (sorted_RF.gather(1, last_R1) > sorted_RF[:, -1:])[:, 0]
        if bool((inside_R | free_R).all()):
            return torch.zeros_like(probs_RV, dtype=torch.bool).scatter(1, order_RF, kept_RF) | free_R[:, None]
    tokens_RV = torch.arange(vocabulary, device=probs_RV.device).expand_as(probs_RV)
    kept_RV, _, order_RV = _kept_of(tokens_RV, probs_RV, top_k_R, top_p_R)
    return torch.zeros_like(kept_RV).scatter(1, order_RV, kept_RV)


def _kept_of(
    tokens_RF: torch.Tensor, probs_RV: torch.Tensor, top_k_R: torch.Tensor, top_p_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(R, F) each: whether a token is kept, if no other is likelier; their falling probabilities; the tokens."""
    sorted_RF, places_RF = probs_RV.gather(1, tokens_RF).sort(dim=-1, descending=True, stable=True)
    before_RF = sorted_RF.cumsum(dim=-1) - sorted_RF  # probability of all tokens ahead of this one
    rank_F = torch.arange(sorted_RF.shape[1], device=probs_RV.device)
    in_k_RF = (rank_F < top_k_R[:, None]) | (top_k_R[:, None] == 0)
    # The first token always stays, so that rounding at a tiny top_p cannot empty the set.
    in_p_RF = (before_RF < top_p_R[:, None]) | (top_p_R[:, None] == 1) | (rank_F == 0)
    return in_k_RF & in_p_RF, sorted_RF, tokens_RF.gather(1, places_RF)
