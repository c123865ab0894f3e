"""Traces that no model wrote: long ones, and ones with hostile text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lace.viz.trace import ThreadTrace, Trace, kept_entries

WORDS = ["Let", " us", " see", " 14", " +", " 9", " =", " 23", ",", " no", " fix", " therefore", " 5", " *", " 6"]


def synthetic_trace(
    threads: int = 4,
    steps: int = 12,
    layers: int = 2,
    heads: int = 2,
    texts: Sequence[str] = WORDS,
    seed: int = 0,
    prompt: str = "Use 9, 14 and 6 to make 30",
) -> Trace:
    """Random readings of the right form: thread n's token of step t reads entries of steps below t - 1 of others.

    Without layers they are threads that read nobody.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, given = threads * steps, 2
    kept = min(kept_entries(layers, threads, heads), threads * steps) if layers else 0
    step_G = torch.arange(steps).repeat(threads)
    own_G = torch.arange(threads).repeat_interleave(steps)
    weights = torch.rand(layers, 1 + heads, tokens, kept, generator=generator)
    weights = weights / weights.sum(dim=-1, keepdim=True) * torch.rand(tokens, 1, generator=generator)
    weights = weights.sort(dim=-1, descending=True).values
    weights[:, :, step_G < max(2, given)] = 0
    at = (torch.rand(weights.shape, generator=generator) * (step_G[:, None] - 1).clamp(min=1)).int()
    other = torch.randint(1, max(2, threads), weights.shape, generator=generator)
    entries = torch.where(weights > 0, at * threads + (own_G[:, None] + other) % threads, 0)
    mass = torch.zeros(layers, heads, tokens, threads)
    mass.scatter_add_(3, (entries[:, 1:] % threads).long(), weights[:, 1:])
    logprobs = -torch.rand(tokens, generator=generator) * 3
    logprobs[step_G < given] = torch.nan
    return Trace(
        prompt=prompt,
        model="synthetic",
        strategy="lace" if layers else "independent",
        threads=[
            ThreadTrace(
                label=3 * n + 1,
                given=given,
                texts=["Thread", f" {3 * n + 1}:", *(texts[(n + s) % len(texts)] for s in range(steps - given))],
                finish_reason="eos",
                tag="best" if n == 1 else "success",
                answer="30",
                correct=n != 2,
                marks=[
                    *((step, "cite", None) for step in range(given, steps, 97)),
                    (steps // 2, "fix", None),
                    (steps - 1, "stop", None),
                ],
            )
            for n in range(threads)
        ],
        chosen=min(1, threads - 1),
        chosen_by="best_tag",
        seconds=1.5,
        layers=[2 * layer + 4 for layer in range(layers)],
        visibility="strict",
        replay_gap=0.0,
        token_ids_G=torch.randint(0, 1000, (tokens,), generator=generator).int(),
        logprobs_G=logprobs.half(),
        entropy_G=(-logprobs / 2).half(),
        gates_YGH=torch.rand(layers, tokens, heads, generator=generator).half(),
        mass_YGHN=(255 * mass.transpose(1, 2).sqrt()).round().byte(),
        entries_YVGK=entries.to(torch.uint16) if threads * steps <= 2**16 else entries.int(),
        weights_YVGK=weights.half(),
        seconds_S=0.05 + 1.45 * (torch.arange(steps) + 1) / steps,
    )
