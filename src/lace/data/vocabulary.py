"""The small tokenizer of the embedded model: one token for a number, an operator, a word, or the name of an idea."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lace.tasks.chain_sum import MAX_VALUE, VERDICTS
from lace.tasks.countdown import PAIR_IDEAS, TRIPLE_IDEAS

TAGS = ("[[best]]", "[[success]]", "[[fail]]")
WORDS = ("Use", "and", "to", "make", "Thread", ":", ",", "(", ")", "+", "-", "*", "/", "=",
         "yes", "no", "done", "see", "answer:", "none", "Compute", *VERDICTS)  # fmt: skip
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
LARGEST_NUMBER = MAX_VALUE


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over numbers 0..LARGEST_NUMBER, the words of a trace and the names of ideas.

    Prompts get `<bos>` in front; decoding joins tokens with spaces.
    """
    words = [PAD, BOS, EOS, UNK, *map(str, range(LARGEST_NUMBER + 1)), *WORDS, *TAGS, *PAIR_IDEAS, *TRIPLE_IDEAS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=UNK))
    token = r"\[\[\w+\]\]|answer:|\([xyz][-+*/][xyz]\)[-+*/][xyz]|[a-d][-+*/][a-d]|<\w+>|\d+|\w+|[^\s\w]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(token), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, model_max_length=512
    )
