"""How different the threads of a lattice are by what they mean: distances of sentence embeddings (arXiv 2604.15529).

Token-level distance is for a small vocabulary without synonyms. For text, two threads that say the same in other words
are to count as alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from lace.engine.result import LatticeResult


def mean_cosine_distance(embeddings_ND: torch.Tensor) -> float:
    """Mean over all pairs of 1 - cosine, 0..1 (opposite ones count as unrelated), 0 for N = 1; (N, D) of length 1."""
    first, second = torch.triu_indices(len(embeddings_ND), len(embeddings_ND), offset=1)
    if not len(first):
        return 0.0
    return float((1 - (embeddings_ND[first] * embeddings_ND[second]).sum(-1)).clamp(0, 1).mean())


class EmbeddingDiversity:
    """Mean cosine distance of the threads' texts under a sentence encoder that pools by the mean, as all-MiniLM-L6-v2.

    Args:
        encoder: hub id or directory of an encoder in the transformers format.
        device: where it computes.

    Raises:
        ValueError: one line, if there is no such encoder.
    """

    def __init__(self, encoder: str | Path, device: torch.device | str = "cpu") -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(encoder)
            self.model = AutoModel.from_pretrained(encoder, dtype=torch.float32).to(device).eval()
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the sentence encoder {encoder}: {str(error).splitlines()[0]}") from None
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, D) embeddings of length 1: the mean over the tokens of each text, the end of a long text cut off."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        hidden_NTD = self.model(**batch).last_hidden_state
        mask_NT1 = batch["attention_mask"][..., None].to(hidden_NTD.dtype)
        return torch.nn.functional.normalize((hidden_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1), dim=-1)

    def __call__(self, result: LatticeResult) -> float:
        """Of the threads of a lattice, in 0..1."""
        return mean_cosine_distance(self.embed([thread.text for thread in result.threads]))
