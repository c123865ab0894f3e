"""Telling models apart, and whether a lattice stands on the base model that it was trained for."""

from __future__ import annotations

import hashlib
from typing import Any

from transformers import PreTrainedModel

TENSORS, VALUES = 64, 4
"""How many parameters are sampled, evenly over the model, and how many values of each."""
TOLERANCE = 2**-8
"""Largest relative difference of a value: above the rounding of bfloat16, below what training changes."""


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """The shape of a base model, hashed, and samples of its weights; its lattice does not count."""
    base = [(name, parameter) for name, parameter in model.named_parameters() if ".lattice." not in name]
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, parameter in base:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
    chosen = base[:: -(-len(base) // TENSORS)]
    samples = [v for _, p in chosen for v in p.detach().flatten()[:VALUES].float().tolist()]
    return {"shapes": digest.hexdigest()[:16], "samples": [float(f"{value:.6g}") for value in samples]}


def same_base(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two fingerprints are of the same weights, whatever dtype each was loaded in."""
    if one["shapes"] != other["shapes"] or len(one["samples"]) != len(other["samples"]):
        return False
    pairs = zip(one["samples"], other["samples"], strict=True)
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-7 for a, b in pairs)


def weights_digest(model: PreTrainedModel) -> str:
    """Tells models of the same name apart, lattice included."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + str(tensor.flatten()[:64].float().tolist()).encode())
    return digest.hexdigest()[:16]
