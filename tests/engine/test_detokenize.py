"""Streamed text is the decoded text, in pieces that never have to be taken back."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lace.engine.detokenize import Detokenizer


@pytest.fixture(scope="module")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that most characters beyond ASCII take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", ["plain", "größer → 漢字 🙂 שלום", "a\nb\tc  d"])
def test_pieces_make_the_whole(text: str, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    stream, pieces = Detokenizer(bytes_tokenizer, ()), []
    ids = bytes_tokenizer(text)["input_ids"]
    for n, token in enumerate(ids):
        stream.add(token)
        pieces.append(stream.take(final=n == len(ids) - 1))
    assert "".join(pieces) == stream.text == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_lost(bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    stream = Detokenizer(bytes_tokenizer, ())
    for token in bytes_tokenizer("ab🙂")["input_ids"][:-1]:
        stream.add(token)
    assert stream.take(final=False) == "ab"
    assert stream.take(final=True) == "\N{REPLACEMENT CHARACTER}"


def test_the_beginning_of_a_stop_text_is_held_back(bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    stream, pieces = Detokenizer(bytes_tokenizer, ("END",)), []
    for token in bytes_tokenizer("an ENd, the END.")["input_ids"]:
        stream.add(token)
        pieces.append(stream.take(final=stream.stopped))
        if stream.stopped:
            break
    assert "".join(pieces) == "an ENd, the "
    assert all("E" not in piece or "ENd" in piece for piece in pieces)


def test_lazy_decodes_at_the_end_only(bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    stream = Detokenizer(bytes_tokenizer, (), lazy=True)
    for token in bytes_tokenizer("🙂 ja")["input_ids"]:
        stream.add(token)
        assert stream.take(final=False) == ""
    assert stream.take(final=True) == stream.text == "🙂 ja"
