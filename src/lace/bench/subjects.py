"""What is measured: a model on disk, or one of random weights in the shape of a known one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from lace.engine.engine import Engine
from lace.lattice.checkpoint import Loaded, load, shipped_models
from lace.lattice.config import LatticeConfig
from lace.lattice.graft import graft, lattice_layers
from lace.lattice.size import LatticeSize, lattice_size


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int) -> PretrainedConfig:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
    )


SHAPES: dict[str, PretrainedConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32),
}
NARROW = {"vocab_size": 512, "intermediate_size": 64, "head_dim": 8}
"""Operators are counted on a model as deep as the shape, and no wider than needed: their number is the same."""


def model_engine(source: str, dtype: torch.dtype | None = None) -> Engine:
    """A model as `lace.lattice.checkpoint.load` finds it, or a directory with a GGUF file; the default lattice is
    grafted onto a plain one.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it cannot be loaded, or has no tokenizer.
    """
    files = sorted(Path(source).glob("*.gguf")) if source not in shipped_models() else []
    loaded = _load_gguf(files[0], dtype) if files else load(source, dtype=dtype)
    if loaded.tokenizer is None:
        raise ValueError(f"{source} has no tokenizer; save one beside the model")
    return _engine(loaded.model, loaded.tokenizer)


def _load_gguf(file: Path, dtype: torch.dtype | None) -> Loaded:
    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    return Loaded(AutoModelForCausalLM.from_pretrained(**given, dtype=dtype or torch.float32), tokenizer)


def shape_engine(name: str, dtype: torch.dtype | None = None, *, narrow: bool = False) -> Engine:
    """A random model of a known shape with the default lattice; it speaks the tokens of a shipped model.

    Raises:
        ValueError: if the shape is not known.
    """
    config = _shape(name)
    if narrow:
        config = type(config).from_dict({**config.to_dict(), **NARROW, "hidden_size": 8 * config.num_attention_heads})
    tokenizer = load(shipped_models()[0]).tokenizer
    assert tokenizer is not None
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    return _engine(model, tokenizer)


def _engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
    if not lattice_layers(model):
        graft(model, LatticeConfig())
    engine = Engine(model, tokenizer)
    engine.end_ids = frozenset()  # every thread goes on to its budget, so that all sides do the same steps
    return engine


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The base of a grafted model, over the same weights: without lattice and hooks, and without an end token."""
    config = copy.deepcopy(model.config)
    base: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype).eval().to(model.device)
    base.load_state_dict({n: p for n, p in model.state_dict().items() if ".lattice." not in n}, assign=True)
    base.tie_weights()
    base.generation_config = GenerationConfig()
    plain: PreTrainedModel = base
    return plain


def shape_size(name: str) -> LatticeSize:
    """What the default lattice costs a known shape; computes nothing.

    Raises:
        ValueError: if the shape is not known.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_shape(name), dtype=torch.bfloat16)
    return lattice_size(graft(model, LatticeConfig()))


def _shape(name: str) -> PretrainedConfig:
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known are {', '.join(SHAPES)}")
    return SHAPES[name]


def prompt_of(engine: Engine, tokens: int) -> str:
    """A prompt of about so many tokens, never of more."""
    text, words = "7", 1
    while len(engine.tokenizer(longer := text + " 7")["input_ids"]) <= tokens and words < tokens:
        text, words = longer, words + 1
    return text
