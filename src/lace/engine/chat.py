"""The chat format of models that have one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, reply: bool = True) -> str:
    """The prompt of a conversation, for a tokenizer that has a chat template.

    Args:
        tokenizer: the model's.
        messages: each with `role` and `content`.
        reply: whether a new reply begins; else the last message goes on.
    """
    text = str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=reply, continue_final_message=not reply
        )
    )
    return text.removeprefix(tokenizer.bos_token or "")  # the engine's tokenizer puts it in front again


def conversation_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """As `chat_text`; for a model that has no chat format, the last user message.

    Raises:
        ValueError: one line, if such a model gets no user message.
    """
    if tokenizer.chat_template is not None:
        return chat_text(tokenizer, messages)
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if not asked:
        raise ValueError("messages holds no message of the role user")
    return asked[-1]
