"""Makes the table of a model's own mistakes in sums: `python -m lace.train.mistakes MODEL TABLE`.

Every sum of the task is asked once (`lace.train.sum_skill`), and the likeliest wrong results are kept with their
probabilities (`lace.data.mistakes`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lace.data.mistakes import SHAPE, Mistakes
from lace.lattice.checkpoint import load
from lace.tasks.chain_sum import MAX_TERM, MAX_VALUE, MIN_TERM, in_range
from lace.train.sum_skill import ask

KEPT = 4
"""Wrong results of each sum that are kept."""


def collect(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Mistakes:
    """Asks for all sums.

    Args:
        model: knows the words of `lace.data.vocabulary`; a lattice is not used.
        tokenizer: the model's.
        seed: of the order of the sums.
    """
    rng = Random(seed)
    # Terms of one digit do not occur: their places in the table stay without mistakes.
    terms = [range(MIN_TERM, MAX_TERM + 1), range(-MIN_TERM, -MAX_TERM - 1, -1)]
    every = [(x, term) for signed in terms for x in range(1, MAX_VALUE + 1) for term in signed]
    asked = [(x, term) for x, term in every if in_range(x, [term])]
    rng.shuffle(asked)
    results, chances = torch.zeros(*SHAPE, KEPT, dtype=torch.int16), torch.zeros(*SHAPE, KEPT)
    for sums, probabilities_EN in ask(model, tokenizer, asked, rng):
        x_E, term_E = torch.tensor(sums).unbind(1)
        probabilities_EN[torch.arange(len(sums)), x_E + term_E] = 0.0
        top = probabilities_EN.topk(KEPT)
        place = (term_E < 0).long(), x_E, term_E.abs()
        results[place], chances[place] = top.indices.to(torch.int16), top.values
    return Mistakes(results, chances)


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
