"""Tiny random models that write words of the real vocabulary, and prompts for them."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lace.engine.sampling import SamplingParams
from lace.lattice.graft import graft
from tiny import FAMILIES, tiny_config, wake

PROMPTS = ["Use 3, 7 and 12 to make 33", "Use 3, 7, 12 and 5 to make 58", "Use 1, 2 and 9 to make 12"]
VARIED = [
    SamplingParams(threads=3, max_tokens=9, seed=1, grace=None),
    SamplingParams(threads=5, max_tokens=14, seed=2, temperature=0.6, top_k=20, grace=None),
    SamplingParams(threads=1, max_tokens=6, seed=3, top_p=0.7, grace=None),
]


def new_model(
    tokenizer: PreTrainedTokenizerFast, family: str = "qwen3", *, fresh: bool = False, **settings: object
) -> PreTrainedModel:
    """A tiny random model over the real vocabulary; 1 of 7 tokens is an end token, to end threads early."""
    config = copy.deepcopy(FAMILIES[family])
    config.vocab_size, config.eos_token_id, config.bos_token_id = len(tokenizer), tokenizer.eos_token_id, 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    head.weight.data = head.weight.data.clone() * 10
    model.generation_config.eos_token_id = list(range(len(tokenizer) // 7))
    graft(model, tiny_config(opening="Thread {label}:", **settings))
    return model if fresh else wake(model)
