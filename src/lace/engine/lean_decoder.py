"""A step of decoding: one token of every row through the model, in as few operators as its kind allows.

For a single token the time of a step is mostly that of starting operators, and transformers' modules, made for every
length and mode, start two or three times as many as the arithmetic needs. Decoders of the Llama kind, which most are,
therefore have a pass of their own here, over the model's own weights; other kinds take the model's forward pass. Both
compute the same: `tests/engine/test_lean_decoder.py`.

Shape letters: R rows, C columns, D width, H query heads, G key-value heads, K head dimensions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lace.engine.step_input import StepInput
from lace.lattice.attention import ThreadLayout
from lace.lattice.graft import is_watched, lattice_layers

LLAMA_KIND = frozenset(("llama", "qwen2", "qwen3"))
"""Model types whose layers compute what `_Layer` does."""
COPIED_BELOW = 2**31
"""Bytes of a model up to which its weights are copied for decoding: there starting operators takes most of a step."""


def is_llama_kind(model: PreTrainedModel) -> bool:
    """Whether a model computes what `LeanDecoder` does: of a known type, with plain layers, each reading all columns,
    in one place and dtype, and with nobody else's hooks."""
    config = model.config.get_text_config()
    if len({(p.device, p.dtype) for p in model.parameters()}) > 1 or is_watched(model):
        return False
    if config.model_type not in LLAMA_KIND or config.hidden_act != "silu":
        return False
    if "partial_rotary_factor" in str(config.rope_parameters) or torch.is_autocast_enabled(model.device.type):
        return False
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    decoder: Any = model.get_decoder()
    inner = [linear for layer in decoder.layers for linear in (*layer.self_attn.children(), *layer.mlp.children())]
    usual = [module for module in inner if hasattr(module, "in_features")]
    head = model.get_output_embeddings()
    return all(type(module) is nn.Linear for module in (*usual, head)) and type(decoder.embed_tokens) is nn.Embedding


def may_be_copied(model: PreTrainedModel) -> bool:
    """Whether a model is small enough for copies of its weights."""
    return sum(p.nbytes for p in model.parameters()) <= COPIED_BELOW


class _Norm:
    """RMS norm over the last dimension.

    One operator on a GPU and many on the processor, where layer norm is one: of (x, -x), whose mean is zero, it is RMS
    norm.

    Args:
        *norms: of one width; with several, as many places of the dimension before the last as `places` says have the
            weight of each.
    """

    def __init__(self, *norms: Any, places: tuple[int, ...] = ()) -> None:
        self.width, self.epsilon = norms[0].weight.shape[0], norms[0].variance_epsilon
        self.each_JK: torch.Tensor | None = None
        self.weight: torch.Tensor | None = None if places else norms[0].weight
        if places:
            self.each_JK = torch.cat([norm.weight.expand(n, -1) for norm, n in zip(norms, places, strict=True)])
        self.doubled = None if self.weight is None else self.weight.expand(2, -1).contiguous()
        self.signs_21 = norms[0].weight.new_tensor([[1.0], [-1.0]])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":
            both = x.unsqueeze(-2) * self.signs_21
            normed = torch.layer_norm(both, (2, self.width), self.doubled, None, self.epsilon).select(-2, 0)
        else:
            normed = torch.rms_norm(x, (self.width,), self.weight, self.epsilon)
        return normed if self.each_JK is None else normed * self.each_JK


class _Linear:
    """What linear layers make of one input, side by side.

    Args:
        *linears: the layers.
        copied: whether by one product over a copy of their weights, laid out as the device reads them fastest: for a
            processor turned around in float32 and packed in bfloat16.
    """

    def __init__(self, *linears: nn.Linear, copied: bool) -> None:
        self.linears = linears
        weight, self.bias = linears[0].weight, None
        self.packed: torch.Tensor | None = None
        self.transposed_DO: torch.Tensor | None = None
        if not copied and len(linears) > 1:
            return
        if len(linears) > 1:
            weight = torch.cat([linear.weight for linear in linears])
        if any(linear.bias is not None for linear in linears):
            biases = [weight.new_zeros(len(x.weight)) if x.bias is None else x.bias for x in linears]
            self.bias = torch.cat(tuple(biases))
        on_processor = copied and weight.device.type == "cpu"
        if on_processor and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        else:
            self.transposed_DO = weight.t().contiguous() if on_processor else weight.t()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(R, D) to (R, O)."""
        if self.packed is not None:
            made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return made
        if self.transposed_DO is not None:
            return x @ self.transposed_DO if self.bias is None else torch.addmm(self.bias, x, self.transposed_DO)
        return torch.cat([nn.functional.linear(x, linear.weight, linear.bias) for linear in self.linears], dim=1)

    def added(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """h and what is made of x."""
        if self.transposed_DO is None:
            return self(x).add_(h)
        sum_RO = torch.addmm(h, x, self.transposed_DO)
        return sum_RO if self.bias is None else sum_RO + self.bias


class _Layer:
    """Weights of one decoder layer."""

    def __init__(self, layer: Any, *, copied: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _Linear(attention.q_proj, attention.k_proj, attention.v_proj, copied=copied)
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.heads, self.key_heads = (p.out_features // self.head_dim for p in (attention.q_proj, attention.k_proj))
        self.head_norms: _Norm | None = None
        if hasattr(attention, "q_norm"):
            self.head_norms = _Norm(attention.q_norm, attention.k_norm, places=(self.heads, self.key_heads))
        self.o_proj = _Linear(attention.o_proj, copied=copied)
        self.lattice = attention.lattice if hasattr(attention, "lattice") else None
        self.before, self.after = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.gate_up = _Linear(mlp.gate_proj, mlp.up_proj, copied=copied)
        self.down = _Linear(mlp.down_proj, copied=copied)


class LeanDecoder:
    """The step of a decoder of the Llama kind.

    Args:
        model: see `is_llama_kind`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder: Any = model.get_decoder()
        copied = may_be_copied(model)
        self.layers = [_Layer(layer, copied=copied) for layer in decoder.layers]
        self.rotary, self.embeddings = decoder.rotary_emb, decoder.embed_tokens
        self.head = _Linear(model.get_output_embeddings(), copied=copied)
        self.norm = _Norm(decoder.norm)
        self.lattices = lattice_layers(model)
        half = self.layers[0].head_dim // 2
        self.signs_K = torch.tensor([-1.0] * half + [1.0] * half, dtype=model.dtype, device=model.device)

    def __call__(self, given: StepInput) -> torch.Tensor:
        """Computes logits (R, V)."""
        return self.compute(given, given.thread_layout(self.lattices))

    def compute(self, given: StepInput, threads: ThreadLayout | None) -> torch.Tensor:
        """The same, with the thread layout of what is given."""
        tokens_R, positions_R, cache, mask, _ = given
        if mask is not None and mask.ndim == 2:
            mask = torch.zeros(mask.shape, dtype=self.signs_K.dtype, device=mask.device).masked_fill_(
                mask == 0, -torch.inf
            )[:, None, None]
        h_RD = self.embeddings(tokens_R)
        cos_R1K, sin_R1K = self.rotary(h_RD, positions_R[:, None])
        turn = cos_R1K, sin_R1K * self.signs_K
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            x_RD = layer.before(h_RD)
            x_RD = _attend(layer, x_RD, turn, kept, mask)
            if threads is not None and layer.lattice is not None and layer.lattice.enabled:
                x_RD = layer.lattice.added(x_RD, threads)
            h_RD = layer.o_proj.added(h_RD, x_RD)
            gate_RF, up_RF = layer.gate_up(layer.after(h_RD)).chunk(2, dim=1)
            h_RD = layer.down.added(h_RD, nn.functional.silu(gate_RF).mul_(up_RF))
        return self.head(self.norm(h_RD))


def _attend(
    layer: _Layer,
    x_RD: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor],
    kept: Any,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention before `o_proj`; writes the cache.

    Args:
        turn: cosine of the rotary angles, and sine with the signs of a right angle, both (R, 1, K).
    """
    rows, dim, heads, turning = len(x_RD), layer.head_dim, layer.heads, layer.heads + layer.key_heads
    qkv_RJK = layer.qkv(x_RD).view(rows, -1, dim)  # J = H + 2 G
    qk_RJK = qkv_RJK[:, :turning]
    if layer.head_norms is not None:
        qk_RJK = layer.head_norms(qk_RJK)
    cos, sin = turn
    qk_RJK = qk_RJK.roll(dim // 2, -1).mul_(sin).addcmul_(qk_RJK, cos)
    keys_RGCK, values_RGCK = kept.update(qk_RJK[:, heads:, None], qkv_RJK[:, turning:, None])
    read = nn.functional.scaled_dot_product_attention(
        # The query heads of a key-value head are queries of its keys.
        qk_RJK[:, :heads].view(rows, layer.key_heads, -1, dim),
        keys_RGCK,
        values_RGCK,
        attn_mask=mask,
        scale=layer.scaling,
    )
    return read.reshape(rows, -1)
