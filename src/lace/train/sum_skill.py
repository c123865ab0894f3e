"""How well a model adds and subtracts: what it would write behind `=`, and a run that ends at a wanted skill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from lace.data.chain_sum_teacher import write_sum
from lace.data.record import ThreadRecord, opening_words
from lace.tasks.chain_sum import MAX_TERM, MAX_VALUE, MIN_TERM, generate, in_range
from lace.train import run_log

ROW = 12
"""Sums in a row."""
BATCH = 64
"""Rows in a forward pass."""
ASKED = 4_800
"""Sums whose wrong share is taken: at 6 % its standard error is 0.3 points."""

Sum = tuple[int, int]
"""A value, and the signed term that is added to it."""


@torch.no_grad()
def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sums: Sequence[Sum], rng: Random
) -> Iterator[tuple[Sequence[Sum], torch.Tensor]]:
    """What a model gives for sums, asked in rows like those that it was trained on.

    Args:
        model: knows the words of `lace.data.vocabulary`; a lattice is not used.
        tokenizer: the model's.
        sums: in the order in which they are asked.
        rng: of the puzzles in front of the rows.

    Yields:
        Some of the sums, and for each of them the probabilities of 0 to MAX_VALUE, (sums, MAX_VALUE + 1), on the CPU.
    """
    number_ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(n) for n in range(MAX_VALUE + 1)]))
    equals_id = cast(int, tokenizer.convert_tokens_to_ids("="))
    for start in range(0, len(sums), ROW * BATCH):
        batch = sums[start : start + ROW * BATCH]
        texts = [_row_text(batch[n : n + ROW], rng) for n in range(0, len(batch), ROW)]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
        logits_RTV = model(**ids, use_cache=False).logits
        logits_EV = logits_RTV[ids["input_ids"] == equals_id]  # a mask picks row by row, the order of the sums
        yield batch, logits_EV[:, number_ids.to(model.device)].float().softmax(-1).cpu()


def _row_text(row: Sequence[Sum], rng: Random) -> str:
    prompt, label = generate(rng, "train").prompt, rng.randint(1, 32)
    thread = ThreadRecord(label, opening_words(label))
    for x, term in row:
        write_sum(thread, x, term, x + term, {})
    return " ".join([prompt, *thread.tokens])


def wrong_share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = ASKED, seed: int = 0) -> float:
    """The share of `count` sums, drawn at random, whose likeliest result is wrong."""
    rng, sums = Random(seed), list[Sum]()
    while len(sums) < count:
        sign, x, term = rng.choice((1, -1)), rng.randint(1, MAX_VALUE), rng.randint(MIN_TERM, MAX_TERM)
        if in_range(x, [sign * term]):
            sums.append((x, sign * term))
    wrong = 0
    for batch, probabilities_EN in ask(model, tokenizer, sums, rng):
        wrong += int((probabilities_EN.argmax(-1) != torch.tensor(batch).sum(-1)).sum())
    return wrong / count


class EndAtSkill(TrainerCallback):
    """Ends a run as soon as a model gets no more than a given share of sums wrong.

    Args:
        tokenizer: the model's.
        share: the wanted one.
        log: file that the shares are written to, as `wrong_sums`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float, log: Path) -> None:
        self.tokenizer, self.share, self.log = tokenizer, share, log

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % state.logging_steps:
            return
        wrong = wrong_share(model, self.tokenizer)
        if state.is_world_process_zero:
            run_log.append(self.log, {"step": state.global_step, "wrong_sums": round(wrong, 4)})
        control.should_training_stop = control.should_training_stop or wrong <= self.share
