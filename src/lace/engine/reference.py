"""The engine in slow, obvious lines: no cache of what was computed, every lattice whole and anew at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lace.engine.sampling import SamplingParams, choose_tokens, draw_thread_ids, draw_uniforms, end_token_ids
from lace.lattice.graft import new_lattice_cache


def generate_reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    params: SamplingParams,
    *,
    lattice: bool = True,
) -> list[list[int]]:
    """The sampled token ids of each thread; ends only at the end token or `max_tokens` (no stop texts, no early stop).

    `lattice=False` is the strategy `independent`.
    """
    return _generate(model, tokenizer, [prompt], [params], lattice=lattice, swapped=False)[0]


def generate_swapped_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], params: Sequence[SamplingParams]
) -> list[list[list[int]]]:
    """The same of several prompts in one batch of the strategy `swapped`: lattice i reads lattice i + 1, cyclically."""
    return _generate(model, tokenizer, prompts, params, lattice=True, swapped=True)


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    params: Sequence[SamplingParams],
    *,
    lattice: bool,
    swapped: bool,
) -> list[list[list[int]]]:
    config = getattr(model, "lattice_config", None)
    ends = end_token_ids(model, tokenizer)
    text = config.opening if config else ""
    places = [(i, n) for i, own in enumerate(params) for n in range(own.threads)]  # of each row: lattice, thread
    lattice_rows = torch.arange(len(places)).view(len(prompts), -1)
    drawn = [draw_thread_ids(params[0 if swapped else i], config) for i in range(len(prompts))]
    labels = [drawn[i][n] for i, n in places]
    questions = [tokenizer(prompts[i])["input_ids"] for i, _ in places]
    openings = [tokenizer(text.format(label=label), add_special_tokens=False)["input_ids"] for label in labels]
    longest = max(map(len, openings))
    uniforms = [draw_uniforms(own, own.max_tokens + longest) for own in params]
    written: list[list[int]] = [[] for _ in places]  # generated tokens, the opening included
    running = [True] * len(places)
    device = model.device
    step = 0
    while any(running):
        rows = [[*question, *tokens] for question, tokens in zip(questions, written, strict=True)]
        width = max(map(len, rows))
        input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        starts = torch.tensor([len(question) for question in questions])
        steps = torch.where(real == 1, torch.arange(width) - starts[:, None], -1).clamp(min=-1)
        layout = {"steps": steps, "thread_ids": torch.tensor(labels), "lattice_rows": lattice_rows}
        tensors = {"input_ids": input_ids, "attention_mask": real, **(layout if lattice else {})}
        given: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
        if swapped:  # made for this pass only: it is the cache that lets a lattice read the next one's entries
            given["lattice_cache"] = new_lattice_cache(model, len(prompts), params[0].threads, width, swapped=True)
        logits = model(**given, use_cache=False).logits.cpu()
        for row, (i, n) in enumerate(places):
            if not running[row]:
                continue
            if step < len(openings[row]):
                written[row].append(openings[row][step])
                continue
            own = params[i]
            last = logits[row : row + 1, len(rows[row]) - 1]
            temperature, top_k, top_p = map(torch.tensor, ([own.temperature], [own.top_k], [own.top_p]))
            token, _ = choose_tokens(last, uniforms[i][step, n : n + 1], temperature, top_k, top_p, True)
            written[row].append(int(token))
            length = len(written[row]) - len(openings[row])
            running[row] = int(token) not in ends and length < own.max_tokens
        step += 1
    sampled = [tokens[len(opening) :] for tokens, opening in zip(written, openings, strict=True)]
    return [[sampled[row] for row in rows_N] for rows_N in lattice_rows.tolist()]
