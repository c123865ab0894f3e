"""What a training step costs, from the shape of a model alone: parameters, operations per token, memory.

Operations per token of a pass over rows of T tokens, after PaLM (arXiv 2204.02311, appendix B), which counts a product
and a sum as two and takes every token to attend to the whole row:

    forward  = 2 P + 4 T sum over layers of (heads x head width) + 4 N T sum over lattices of (heads x head width)
    backward = forward + 2 P_trained             (gradients of inputs, and of those weights that learn)
    again    = forward, with gradient checkpointing

P are the weights of all matrix products, lattice and output layer included, the look-up of embeddings not. Where all
weights learn, the backward pass costs twice the forward pass. With a frozen base this is an upper bound: no gradient
flows below the first lattice.

Memory, in bytes; b is the size of an element of the weights (4 or 2), and of one processor, nothing sharded:

    weights      b P
    copies       2 P with autocast from float32
    gradients    b P_trained
    optimizer    AdamW 2 b P_trained, Muon at most as much; Adafactor 4 (rows + columns) of each matrix
    activations  tokens x layers x (24 D + 16 I + 16.5 Q + 16.25 K), with autocast (26 D + 8 I + 10.5 Q + 10.25 K);
                 with checkpointing b D for each layer, and this for one layer
                 (D residual width, I width of the MLP, Q and K widths of all query and all key heads)
    lattice      tokens x lattices x 8 (low dimension + heads x head width) x b, and twice 3 bytes for each pair of
                 tokens of a lattice: who may read whom, and the same as numbers, while one layer computes
    logits       20 for each token and entry of the vocabulary: five copies in float32 at the height of it all
    rollouts     (grpo) the caches of the threads that decode together, gone before a step learns; with autocast the
                 values take half (the keys not, since norms and rotations leave them in float32)

The factors of the activations were measured with saved-tensor hooks on Qwen3, as `tests/train/test_train_config.py`
does again; other families with gated MLPs differ little. Fragmentation and the libraries' workspace come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lace.lattice.graft import lattice_layers
from lace.lattice.size import attention_widths, lattice_size

LOGIT_BYTES = 20


@dataclass(frozen=True)
class Batch:
    """What one process computes at once."""

    lattices: int
    threads: int
    tokens: int
    """Of a row, prompt included."""
    autocast: bool
    checkpointing: bool
    adafactor: bool
    lattice: bool = True
    """Whether the threads read each other."""
    decoding_rows: int = 0
    """Threads that decode together, for grpo."""


@dataclass(frozen=True)
class Cost:
    """Of one training step."""

    parameters: int
    trainable: int
    lattice: int
    """Parameters of the lattice."""
    forward_flops: float
    """Operations per token of a forward pass."""
    training_flops: float
    """Operations per token of forward and backward pass, with what is computed again."""
    memory: dict[str, float]
    """Bytes by purpose; for `total`, what learning and decoding need alone counts once."""


def training_cost(model: PreTrainedModel, batch: Batch) -> Cost:
    """Counts without computing anything, so a model on the meta device will do.

    Args:
        model: those parameters count as trained that require gradients.
        batch: what is computed at once.
    """
    config: Any = model.config.get_text_config()
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    size = lattice_size(model)
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    multiplied = [p for p in parameters if p.dim() > 1 and (p is not embedding or p is output)]

    element = parameters[0].element_size()
    queries, keys = attention_widths(config)
    layers = config.num_hidden_layers
    lattices = [layer.config for layer in lattice_layers(model)] if batch.lattice else []
    readers = [c for c in lattices if c.kind == "lattice"]
    heads = sum(c.num_heads * c.head_dim for c in readers)

    matrices = sum(p.numel() for p in multiplied)
    forward = 2 * matrices + 4 * batch.tokens * (layers * queries + batch.threads * heads)
    backward = forward + 2 * sum(p.numel() for p in multiplied if p.requires_grad)
    again = forward if batch.checkpointing else 0

    total, learning = sum(p.numel() for p in parameters), sum(p.numel() for p in trained)
    of_adafactor = sum(4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) for p in trained if p.dim() > 1)
    tokens = batch.lattices * batch.threads * batch.tokens
    width, inner = config.hidden_size, config.intermediate_size
    if batch.autocast:
        layer = 26 * width + 8 * inner + 10.5 * queries + 10.25 * keys
    else:
        layer = (24 * width + 16 * inner + 16.5 * queries + 16.25 * keys) * element / 4
    pairs = batch.lattices * (batch.threads * batch.tokens) ** 2 if readers else 0
    side = sum(8 * element * (c.low_dim + c.num_heads * c.head_dim) for c in lattices)
    main_bytes = size.main_bytes * (0.75 if batch.autocast and element == 4 else 1)
    memory = {
        "weights": element * total,
        "copies": 2 * total if batch.autocast and element == 4 else 0,
        "gradients": element * learning,
        "optimizer": of_adafactor if batch.adafactor else 2 * element * learning,
        "activations": tokens * (layers * element * width + layer if batch.checkpointing else layers * layer),
        "lattice": tokens * side + 6 * pairs,
        "logits": LOGIT_BYTES * tokens * config.vocab_size,
        "rollouts": batch.decoding_rows * batch.tokens * (main_bytes + size.lattice_bytes),
    }
    passing = memory["activations"] + memory["lattice"] + memory["logits"]
    kept = sum(memory[name] for name in ("weights", "copies", "gradients", "optimizer"))
    memory["total"] = kept + max(passing, memory["rollouts"])
    return Cost(total, learning, size.parameters, forward, forward + backward + again, memory)
