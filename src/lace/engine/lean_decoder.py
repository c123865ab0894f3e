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
from transformers.cache_utils import Cache

from lace.lattice.attention import ThreadLayout
from lace.lattice.graft import is_watched, lattice_layers

LLAMA_KIND = frozenset(("llama", "qwen2", "qwen3"))
"""Model types whose layers compute what `_Layer` does."""


class WholeModel:
    """The step by the model's own forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(
        self,
        tokens_R: torch.Tensor,
        positions_R: torch.Tensor,
        cache: Cache,
        mask: torch.Tensor | None,
        layout: dict[str, Any],
    ) -> torch.Tensor:
        """Computes logits (R, V).

        Args:
            tokens_R, positions_R: of the rows.
            cache: whose layers take the new keys and values, and give back those to read.
            mask: (R, C) 1 for columns that are the row's, 0 for others; or (R, 1, 1, C) what is added to their scores.
            layout: the forward arguments of the thread layout, see `ThreadLayout.build`, and `lattice_cache`; none to
                leave the lattice off.
        """
        out = self.model(
            input_ids=tokens_R[:, None],
            attention_mask=mask,
            position_ids=positions_R[:, None],
            past_key_values=cache,
            use_cache=True,
            **layout,
        )
        logits_RV: torch.Tensor = out.logits[:, -1]
        return logits_RV


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


class _Norm:
    """RMS norm over the last dimension.

    One operator on a GPU and many on the processor, where layer norm is one: of (x, -x), whose mean is zero, it is RMS
    norm.
    """

    def __init__(self, norm: Any) -> None:
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon
        self.doubled = self.weight.expand(2, -1).contiguous()
        self.signs_21 = self.weight.new_tensor([[1.0], [-1.0]])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        if x.device.type != "cpu":
            return torch.rms_norm(x, (width,), self.weight, self.epsilon)
        both = x.unsqueeze(-2) * self.signs_21
        return torch.layer_norm(both, (2, width), self.doubled, None, self.epsilon).select(-2, 0)


class _AddedLinear:
    """Adds what a linear layer makes of x to h, by one operator."""

    def __init__(self, linear: nn.Linear) -> None:
        self.transposed, self.bias = linear.weight.t(), linear.bias

    def __call__(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        sum_RD = torch.addmm(h, x, self.transposed)
        return sum_RD if self.bias is None else sum_RD + self.bias


class _Layer:
    """Weights of one decoder layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.projections = [(p.weight, p.bias) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else ()
        self.head_norms = [_Norm(norm) for norm in norms]
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.o_proj, self.down = _AddedLinear(attention.o_proj), _AddedLinear(mlp.down_proj)
        self.lattice = attention.lattice if hasattr(attention, "lattice") else None
        self.before, self.after = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.gate, self.up = mlp.gate_proj, mlp.up_proj


class LeanDecoder:
    """The step of a decoder of the Llama kind.

    Args:
        model: see `is_llama_kind`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder: Any = model.get_decoder()
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self.rotary, self.embeddings, self.head = (
            decoder.rotary_emb,
            decoder.embed_tokens,
            model.get_output_embeddings(),
        )
        self.norm = _Norm(decoder.norm)
        self.lattices = lattice_layers(model)
        half = self.layers[0].head_dim // 2
        self.signs_K = torch.tensor([-1.0] * half + [1.0] * half, dtype=model.dtype, device=model.device)

    def __call__(
        self,
        tokens_R: torch.Tensor,
        positions_R: torch.Tensor,
        cache: Cache,
        mask: torch.Tensor | None,
        layout: dict[str, Any],
    ) -> torch.Tensor:
        """Computes what `WholeModel` does."""
        if mask is not None and mask.ndim == 2:
            mask = torch.zeros(mask.shape, dtype=self.signs_K.dtype, device=mask.device).masked_fill_(
                mask == 0, -torch.inf
            )[:, None, None]
        threads = None
        if layout and any(lattice.enabled for lattice in self.lattices):
            given = {name: value for name, value in layout.items() if name != "lattice_cache"}
            threads = ThreadLayout.build(self.lattices[0].config, **given, cache=layout["lattice_cache"])
        h_RD = self.embeddings(tokens_R)
        cos_R1K, sin_R1K = self.rotary(h_RD, positions_R[:, None])
        turn = cos_R1K.unsqueeze(1), (sin_R1K * self.signs_K).unsqueeze(1)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            x_RD = layer.before(h_RD)
            x_RD = _attend(layer, x_RD, turn, kept, mask)
            if threads is not None and layer.lattice is not None and layer.lattice.enabled:
                x_RD = x_RD + layer.lattice(x_RD[:, None], threads)[:, 0]
            h_RD = layer.o_proj(h_RD, x_RD)
            x_RD = layer.after(h_RD)
            x_RF = nn.functional.silu(_linear(x_RD, layer.gate)).mul_(_linear(x_RD, layer.up))
            h_RD = layer.down(h_RD, x_RF)
        return _linear(self.norm(h_RD), self.head)


DecodeStep = WholeModel | LeanDecoder
"""One token of every row."""


def decode_step(model: PreTrainedModel, *, lean: bool) -> DecodeStep:
    """The step of a model; `lean`: by few operators if its kind allows it."""
    return LeanDecoder(model) if lean and is_llama_kind(model) else WholeModel(model)


def _attend(
    layer: _Layer,
    x_RD: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor],
    kept: Any,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention before `o_proj`; writes the cache.

    Args:
        turn: cosine of the rotary angles, and sine with the signs of a right angle, both (R, 1, 1, K).
    """
    rows, dim = len(x_RD), layer.head_dim
    q_RH1K, k_RG1K, v_RG1K = [
        nn.functional.linear(x_RD, weight, bias).view(rows, -1, 1, dim) for weight, bias in layer.projections
    ]
    if layer.head_norms:
        q_RH1K, k_RG1K = [norm(x) for x, norm in zip((q_RH1K, k_RG1K), layer.head_norms, strict=True)]
    cos, sin = turn
    q_RH1K, k_RG1K = [x.roll(dim // 2, -1).mul_(sin).addcmul_(x, cos) for x in (q_RH1K, k_RG1K)]
    keys_RGCK, values_RGCK = kept.update(k_RG1K, v_RG1K)
    read = nn.functional.scaled_dot_product_attention(
        q_RH1K.view(rows, k_RG1K.shape[1], -1, dim),  # the query heads of a key-value head are queries of its keys
        keys_RGCK,
        values_RGCK,
        attn_mask=mask,
        scale=layer.scaling,
    )
    return read.reshape(rows, -1)


def _linear(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    return nn.functional.linear(x, linear.weight, linear.bias)
