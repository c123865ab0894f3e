"""Tiny random models and thread layouts for the tests."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lace.lattice.config import LatticeConfig, Visibility
from lace.lattice.graft import graft, lattice_layers

VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, sliding_window=8),
    "gemma3_text": Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8),
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "olmo2": Olmo2Config(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
}


def tiny_model(family: str = "qwen3", seed: int = 0) -> PreTrainedModel:
    """A random base model, in eval mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).eval()


def tiny_config(visibility: Visibility = "strict", **settings: object) -> LatticeConfig:
    shape = {"low_dim": 16, "num_heads": 2, "time_dims": 8, "thread_dims": 4, "visibility": visibility}
    return LatticeConfig(**{**shape, **settings})


def wake(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Fills the zero output projections of the lattice, so that reading changes the outputs visibly."""
    generator = torch.Generator().manual_seed(seed)
    for lattice in lattice_layers(model):
        weight = lattice.up_proj.weight
        weight.data = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return model


def awake_model(visibility: Visibility = "strict", family: str = "qwen3", **settings: object) -> PreTrainedModel:
    return wake(graft(tiny_model(family), tiny_config(visibility, **settings)))


def batch(
    threads: list[int], steps: int = 5, prompts: list[int] | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Forward arguments of random lattices with `threads[i]` threads and `steps` generated tokens each.

    Args:
        prompts: length of each lattice's prompt; rows are padded on the right.
    """
    prompts = prompts or [3] * len(threads)
    generator = torch.Generator().manual_seed(seed)
    rows, width = sum(threads), max(prompts) + steps
    input_ids = torch.zeros((rows, width), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    step_ids = torch.full((rows, width), -1)
    lattice_rows = torch.full((len(threads), max(threads)), -1)
    thread_ids, row = [], 0
    for lattice, (count, prompt) in enumerate(zip(threads, prompts, strict=True)):
        question = torch.randint(3, VOCABULARY, (prompt,), generator=generator)
        thread_ids += (torch.randperm(30, generator=generator)[:count] + 1).tolist()
        for thread in range(count):
            written = torch.randint(3, VOCABULARY, (steps,), generator=generator)
            input_ids[row, : prompt + steps] = torch.cat((question, written))
            attention_mask[row, : prompt + steps] = 1
            step_ids[row, prompt : prompt + steps] = torch.arange(steps)
            lattice_rows[lattice, thread] = row
            row += 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": torch.arange(width).expand(rows, width).clone(),
        "steps": step_ids,
        "thread_ids": torch.tensor(thread_ids),
        "lattice_rows": lattice_rows,
    }


@torch.no_grad()
def logits(model: PreTrainedModel, given: dict[str, torch.Tensor], **more: object) -> torch.Tensor:
    return model(**{**given, **more}).logits


def plain(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same forward arguments without the thread layout."""
    return {name: given[name] for name in ("input_ids", "attention_mask", "position_ids")}
