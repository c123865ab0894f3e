"""Lattices into padded tensors, with the thread layout that the forward pass takes.

Shape letters: L lattices of the batch, N threads of the largest of them, R rows (all threads of all lattices),
T tokens of the longest row (prompt and generated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lace.data.assemble import AssembledLattice

IGNORED = -100
"""Label of a token without loss (the convention of torch's and transformers' cross entropy)."""


@dataclass(frozen=True)
class LatticeCollator:
    """Makes a batch of whole lattices; they may differ in their number of threads.

    The batch is what a grafted model's forward takes: `input_ids`, `labels` (R, T), padding behind all tokens, where
    causal attention does not see it, so that neither a mask nor positions are needed;
    `steps` (R, T), the generated step of a token, -1 for prompt, padding and blind lattices; `thread_ids` (R,);
    `lattice_rows` (L, N), the rows of each lattice, -1 where it has fewer than N threads. For the loss alone:
    `choice_places` (C, 2), row and column of each learned token that the teacher drew at random, and
    `choice_probabilities` (C, V), from what.
    """

    pad_token_id: int
    vocabulary: int
    """V, the width of the model's output; choices are dense over it, which suits small vocabularies."""

    def __call__(self, lattices: Sequence[AssembledLattice]) -> dict[str, torch.Tensor]:
        rows = [(lattice, thread) for lattice in lattices for thread in range(len(lattice.tokens))]
        width = max(len(lattice.prompt_ids) + len(lattice.tokens[thread]) for lattice, thread in rows)
        largest = max(len(lattice.tokens) for lattice in lattices)
        shape = (len(rows), width)
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, IGNORED)
        steps = torch.full(shape, -1)
        lattice_rows = torch.full((len(lattices), largest), -1)
        places: list[tuple[int, int]] = []
        distributions: list[dict[int, float]] = []
        for row, (lattice, thread) in enumerate(rows):
            prompt, tokens = lattice.prompt_ids, lattice.tokens[thread]
            start, end = len(prompt), len(prompt) + len(tokens)
            input_ids[row, :end] = torch.tensor([*prompt, *tokens])
            learned = torch.tensor(lattice.learned[thread], dtype=torch.bool)
            labels[row, start:end] = torch.where(learned, input_ids[row, start:end], IGNORED)
            if not lattice.blind:
                steps[row, start:end] = torch.arange(len(tokens))
            for step, options in lattice.choices[thread].items():
                if lattice.learned[thread][step]:
                    places.append((row, start + step))
                    distributions.append(options)
        probabilities = torch.zeros(len(places), self.vocabulary)
        for place, options in enumerate(distributions):
            probabilities[place, list(options)] = torch.tensor(list(options.values()))
        row = 0
        for index, lattice in enumerate(lattices):
            count = len(lattice.tokens)
            lattice_rows[index, :count] = torch.arange(row, row + count)
            row += count
        return {
            "input_ids": input_ids,
            "labels": labels,
            "steps": steps,
            "thread_ids": torch.tensor([lattice.thread_ids[thread] for lattice, thread in rows]),
            "lattice_rows": lattice_rows,
            "choice_places": torch.tensor(places, dtype=torch.long).view(-1, 2),
            "choice_probabilities": probabilities,
        }
