"""Makes the table of a model's own mistakes in sums: `python -m lace.train.mistakes MODEL TABLE`.

Every sum of the task is asked once, in rows like those that the model was trained on, and the likeliest wrong results
are kept with their probabilities (`lace.data.mistakes`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lace.data.mistakes import SHAPE, Mistakes
from lace.lattice.checkpoint import load
from lace.tasks.chain_sum import MAX_VALUE, MIN_TERM, generate

KEPT = 4
"""Wrong results of each sum that are kept."""
ROW = 12
"""Sums in a row."""
BATCH = 64
"""Rows in a forward pass."""


@torch.inference_mode()
def collect(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Mistakes:
    """Asks for all sums.

    Args:
        model: knows the words of `lace.data.vocabulary`; a lattice is not used.
        tokenizer: the model's.
        seed: of the order of the sums.
    """
    rng = Random(seed)
    # Terms of one digit do not occur: their places in the table stay without mistakes.
    asked = [(sign, x, y) for sign in (0, 1) for x in range(1, MAX_VALUE + 1) for y in range(MIN_TERM, SHAPE[2])]
    asked = [(sign, x, y) for sign, x, y in asked if 1 <= (x - y if sign else x + y) <= MAX_VALUE]
    rng.shuffle(asked)
    number_ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(n) for n in range(MAX_VALUE + 1)]))
    results, chances = torch.zeros(*SHAPE, KEPT, dtype=torch.int16), torch.zeros(*SHAPE, KEPT)
    rows = [asked[n : n + ROW] for n in range(0, len(asked), ROW)]
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        texts = [_row_text(row, rng) for row in batch]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
        logits_RTV = model(**ids, use_cache=False).logits
        equals = ids["input_ids"] == cast(int, tokenizer.convert_tokens_to_ids("="))
        probabilities_EN = logits_RTV[equals][:, number_ids.to(model.device)].float().softmax(-1).cpu()
        sums = [each for row in batch for each in row]  # in the order in which a mask picks: row by row
        right = torch.tensor([x - y if sign else x + y for sign, x, y in sums])
        probabilities_EN[torch.arange(len(sums)), right] = 0.0
        top = probabilities_EN.topk(KEPT)
        place = tuple(torch.tensor(sums).unbind(1))
        results[place], chances[place] = top.indices.to(torch.int16), top.values
    return Mistakes(results, chances)


def _row_text(row: list[tuple[int, int, int]], rng: Random) -> str:
    equations = [f"{x} - {y} = {x - y} ," if sign else f"{x} + {y} = {x + y} ," for sign, x, y in row]
    return f"{generate(rng, 'train').prompt} Thread {rng.randint(1, 32)} : {' '.join(equations)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a model that knows sums")
    parser.add_argument("table", type=Path, help="the file to write, a safetensors file")
    options = parser.parse_args(argv)
    loaded = load(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
    if loaded.tokenizer is None:
        parser.error(f"{options.model} has no tokenizer")
    mistakes = collect(loaded.model, loaded.tokenizer)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    mistakes.save(options.table)
    chances = mistakes.chances.float().sum(-1)
    print(f"{options.table}: {(chances > 0).sum()} sums, wrong with probability {chances[chances > 0].mean():.3f}")


if __name__ == "__main__":
    main()
