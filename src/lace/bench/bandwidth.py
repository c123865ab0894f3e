"""How near a step comes to the speed at which its machine reads memory: what it must read at least, over that speed.

A decoding step computes little for each number that it reads, so on most machines reading bounds it from below.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import PreTrainedModel

from lace.lattice.size import lattice_size

MATRIX = (16_384, 8_192)
"""float32, 512 MiB: more than processors keep beside them."""
READINGS = 7


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second: the median of products of a large matrix and a vector, which read every number of it once."""
    matrix = torch.ones(MATRIX, device=device)  # zeros need not be in memory
    vector = torch.ones(MATRIX[1], device=device)
    spent = []
    for reading in range(1 + READINGS):
        began = time.perf_counter()
        (matrix @ vector)[0].item()  # waits for the device
        if reading:  # the first is warm-up
            spent.append(time.perf_counter() - began)
    return matrix.numel() * matrix.element_size() / statistics.median(spent)


def step_bytes(model: PreTrainedModel, threads: int, context: int, length: int, *, lattice: bool) -> int:
    """Bytes that a decoding step cannot do without: every weight once, and the caches of all threads.

    Args:
        model: with its lattice.
        threads: N.
        context: tokens of the prompt, which is kept for each thread.
        length: tokens that every thread has generated.
        lattice: whether it is on; each thread's part of its cache is read once for all readers.
    """
    size = lattice_size(model)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    element = next(model.parameters()).element_size()
    weights = size.base_parameters + lattice * size.parameters
    if head is None or head.weight is not embeddings.weight:  # of embeddings a step reads a row per thread
        weights -= sum(parameter.numel() for parameter in embeddings.parameters())
    caches = threads * ((context + length) * size.main_bytes + lattice * length * size.lattice_bytes)
    return weights * element + caches
