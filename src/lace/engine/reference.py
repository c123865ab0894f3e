"""The engine in slow, obvious lines: no cache, no batching of prompts, the whole lattice anew at each step."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lace.engine.sampling import SamplingParams, choose_tokens, draw_thread_ids, draw_uniforms, end_token_ids


@torch.inference_mode()
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
    config = getattr(model, "lattice_config", None)
    ends = end_token_ids(model, tokenizer)
    prompt_ids = tokenizer(prompt)["input_ids"]
    labels = draw_thread_ids(params, config)
    opening = config.opening if config else ""
    openings = [tokenizer(opening.format(label=n), add_special_tokens=False)["input_ids"] for n in labels]
    uniforms = draw_uniforms(params, params.max_tokens + max(map(len, openings)))
    threads: list[list[int]] = [[] for _ in labels]  # generated tokens, the opening included
    running = [True] * len(labels)
    device = model.device
    step = 0
    while any(running):
        rows = [[*prompt_ids, *thread] for thread in threads]
        width = max(map(len, rows))
        input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        steps = torch.where(real == 1, torch.arange(width) - len(prompt_ids), -1).clamp(min=-1)
        layout = {"steps": steps, "thread_ids": torch.tensor(labels), "lattice_rows": torch.arange(len(rows))[None]}
        given = {"input_ids": input_ids, "attention_mask": real, **(layout if lattice else {})}
        logits = model(**{name: value.to(device) for name, value in given.items()}, use_cache=False).logits.cpu()
        for n, thread in enumerate(threads):
            if not running[n]:
                continue
            if step < len(openings[n]):
                thread.append(openings[n][step])
                continue
            last = logits[n : n + 1, len(rows[n]) - 1]
            temperature, top_k, top_p = map(torch.tensor, ([params.temperature], [params.top_k], [params.top_p]))
            token, _ = choose_tokens(last, uniforms[step, n : n + 1], temperature, top_k, top_p, True)
            thread.append(int(token))
            length = len(thread) - len(openings[n])
            running[n] = int(token) not in ends and length < params.max_tokens
        step += 1
    return [thread[len(opening) :] for thread, opening in zip(threads, openings, strict=True)]
