"""A student's tokenizer that needs no download."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONFIG = """
[student]
tokenizer = "{student}"
max_waiting = 4000
[steps]
max_tokens = 4000
[notes]
max_tokens = 400
"""
"""The sections of a config of `lace data` that such a student needs: a word is many tokens."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte: it can write whatever a teacher says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=100_000, **special)
