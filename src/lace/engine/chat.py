"""The chat format of models that have one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """The prompt of a conversation, for a tokenizer that has a chat template.

    Args:
        tokenizer: the model's.
        messages: each with `role` and `content`.
    """
    text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    return text.removeprefix(tokenizer.bos_token or "")  # the engine's tokenizer puts it in front again
