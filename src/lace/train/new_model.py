"""A small model from nothing: sizes of a Qwen3 decoder, and number embeddings that make arithmetic easy to learn."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from lace.data.vocabulary import LARGEST_NUMBER


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder of the Qwen3 family; the defaults make a model of 1.3 million parameters.

    Raises:
        ValueError: one line, for sizes that do not fit together.
    """

    hidden_size: int = 128
    """Width of the residual stream."""
    num_hidden_layers: int = 6
    """Decoder layers."""
    intermediate_size: int = 384
    """Width of the gated MLP."""
    num_attention_heads: int = 4
    """Query heads."""
    num_key_value_heads: int = 4
    """Key and value heads."""
    head_dim: int = 32
    """Width of a head."""
    max_position_embeddings: int = 512
    """Tokens of a row at most, prompt and thread together."""
    rope_theta: float = 10_000.0
    """Base of the rotary encoding."""
    tie_word_embeddings: bool = True
    """Whether the output layer is the embedding."""
    vocab_size: int | None = None
    """Tokens known; a new model has its tokenizer's."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "tie_word_embeddings" and value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads, not {self.num_attention_heads} and "
                f"{self.num_key_value_heads}"
            )

    def to_config(self, **more: Any) -> Qwen3Config:
        """The same in the terms of transformers.

        Args:
            more: other fields of the config, or the vocabulary's size where this has none.
        """
        sizes = {name: value for name, value in asdict(self).items() if name != "rope_theta" and value is not None}
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return Qwen3Config(**{**sizes, "rope_parameters": rope, **more})


def number_features(numbers: torch.Tensor) -> torch.Tensor:
    """Sine and cosine of each number at several periods, (len(numbers), 24).

    Networks that learn to add represent numbers like this in the end; starting there saves most of the time.
    """
    periods = torch.tensor([2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0])
    angles = 2 * math.pi * numbers[:, None].float() / periods
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def new_base_model(tokenizer: PreTrainedTokenizerBase, shape: ModelShape | None = None) -> Qwen3ForCausalLM:
    """A random Qwen3 whose number embeddings start from `number_features`.

    Args:
        tokenizer: that of `lace.data.vocabulary`, which has one token for each number.
        shape: the vocabulary's size is the tokenizer's, whatever this says.

    Raises:
        ValueError: if the model is too narrow for the number features.
    """
    shape = shape or ModelShape()
    model = Qwen3ForCausalLM(
        shape.to_config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    numbers = torch.arange(LARGEST_NUMBER + 1)
    features = number_features(numbers) * math.sqrt(2) * model.config.initializer_range
    if features.shape[1] > shape.hidden_size:
        raise ValueError(f"hidden_size must be at least {features.shape[1]}, the width of the number features")
    embeddings: Any = model.get_input_embeddings()
    with torch.no_grad():
        ids = tokenizer.convert_tokens_to_ids([str(int(n)) for n in numbers])
        embeddings.weight[ids, : features.shape[1]] = features
    return model
