"""The student's tokenizer."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Reads a tokenizer.

    Raises:
        ValueError: one line, if there is none, or it knows no end of text.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"student.tokenizer: no tokenizer at {name}: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token is None:
        raise ValueError(f"student.tokenizer: {name} has no end token, which closes a thread")
    return tokenizer
