"""Advantages and the policy-gradient loss of Lattice GRPO; pure functions of tensors.

Shape letters: G groups (prompts), K lattices of a group, N threads of a lattice, R rows, T tokens of the longest row.
"""

from __future__ import annotations

import torch
from torch.nn.functional import kl_div


def group_advantages(rewards_GK: torch.Tensor, *, scale: bool = True) -> torch.Tensor:
    """How much better a lattice did than the others of its prompt: (r - mean) / std over the group (GRPO, arXiv
    2402.03300, section 4.1.2), or without the division (arXiv 2503.20783). A group of equal rewards gets zeros.

    Returns:
        (G, K) advantages, each shared by all threads of its lattice.
    """
    centred_GK = rewards_GK - rewards_GK.mean(dim=1, keepdim=True)
    if not scale:
        return centred_GK
    return centred_GK / (centred_GK.pow(2).mean(dim=1, keepdim=True).sqrt() + 1e-6)


def pooled_advantages(rewards_GKN: torch.Tensor, *, scale: bool = True) -> torch.Tensor:
    """The same for threads that are rewarded each for itself: all K N threads of a prompt are one group; (G, K, N) to
    (G, K, N)."""
    return group_advantages(rewards_GKN.flatten(1), scale=scale).view_as(rewards_GKN)


def thread_advantages(correct_GKN: torch.Tensor) -> torch.Tensor:
    """How much better a thread did than the average thread of its prompt; (G, K, N) to (G, K, N). An optional addition
    to the advantage of its lattice."""
    return correct_GKN - correct_GKN.mean(dim=(1, 2), keepdim=True)


def token_logprobs(logits_RTV: torch.Tensor, input_ids_RT: torch.Tensor) -> torch.Tensor:
    """(R, T - 1) log-probability, in nats, of each token after the first given those before it, in float32."""
    logprobs_RTV = logits_RTV[:, :-1].float().log_softmax(-1)
    return logprobs_RTV.gather(-1, input_ids_RT[:, 1:, None]).squeeze(-1)


def policy_loss(
    logprobs_RT: torch.Tensor,
    sampled_RT: torch.Tensor,
    advantages_R: torch.Tensor,
    learned_RT: torch.Tensor,
    count: torch.Tensor | float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    reference_RT: torch.Tensor | None = None,
    kl_weight: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped policy gradient, averaged over tokens and not over rows, with a wider upper clip (DAPO, arXiv 2503.14476,
    equations 10 and 12), and the unbiased estimate of the divergence from a reference (arXiv 2402.03300, equation 4).

    Args:
        logprobs_RT: of the sampled tokens under the model that learns, with gradient.
        sampled_RT: the same under the model that sampled them.
        advantages_R: of each row.
        learned_RT: which tokens were sampled; prompt, opening and padding were not.
        count: learned tokens to average over, those of other micro-batches and processes included.
        clip_low, clip_high: the ratio of probabilities is of no more use outside of [1 - low, 1 + high].
        reference_RT: the same log-probabilities under a frozen model, for `kl_weight`.

    Returns:
        The loss, and how many tokens were clipped (no gradient).
    """
    ratio_RT = torch.exp(torch.where(learned_RT, logprobs_RT - sampled_RT, 0.0))
    advantages_R1 = advantages_R[:, None]
    plain_RT = ratio_RT * advantages_R1
    clipped_RT = ratio_RT.clamp(1 - clip_low, 1 + clip_high) * advantages_R1
    gain_RT = torch.minimum(plain_RT, clipped_RT)
    if reference_RT is not None and kl_weight:
        log_ratio_RT = torch.where(learned_RT, reference_RT - logprobs_RT, 0.0)
        gain_RT = gain_RT - kl_weight * (torch.exp(log_ratio_RT) - log_ratio_RT - 1)
    loss = -(gain_RT * learned_RT).sum() / count
    return loss, ((clipped_RT < plain_RT) & learned_RT).sum()


def divergence(logits_RTV: torch.Tensor, reference_RTV: torch.Tensor, learned_RT: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence KL(reference || model), in nats, of the whole distributions: the sum over the learned
    tokens, each given those before it.

    Args:
        logits_RTV: of the model that learns, with gradient.
        reference_RTV: of a frozen model, on the same tokens.
        learned_RT: (R, T - 1) which tokens after the first count.
    """
    logprobs_MV = logits_RTV[:, :-1][learned_RT].float().log_softmax(-1)
    reference_MV = reference_RTV[:, :-1][learned_RT].float().log_softmax(-1)
    return kl_div(logprobs_MV, reference_MV, reduction="sum", log_target=True)
