"""A step of a decoder of the Llama kind, one call of compiled C (`decoder_step.c`) in the place of all operators.

For models in float32 or bfloat16 on a processor. Where that cannot be, the step goes by the few operators of
`lean_decoder`, which are its reference; in bfloat16 these round sums that compiled code keeps in float32.

Shape letters: R rows, C columns, D width, V vocabulary, K head dimensions.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, addressof, byref, c_double, c_int64, c_void_p
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lace.engine.cache import RowCache
from lace.engine.lean_decoder import LeanDecoder, may_be_copied
from lace.engine.rolling_cache import RollingCache
from lace.engine.step_input import StepInput
from lace.lattice import native
from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.graft import lattice_layers, numbered_lattices
from lace.native import build
from lace.native.build import LANES, Kernel, Source, panels

SOURCE = Source(Path(__file__).with_name("decoder_step.c"), pointers=3)
WIDEST_HEAD = 256
"""As in the source."""
FIXED_ANGLES = frozenset(("default", "linear", "llama3", "yarn"))
"""Kinds of rotary angles that depend on the position alone."""
POSITIONS = 512
"""For which angles are computed at once."""
NO_MEMORY, BEYOND_ANGLES = 1, 2
"""What the function returns, as in the source."""


class _Block(Structure):
    """As in the source."""

    _fields_ = [
        *((name, c_void_p) for name in ("qkv", "o", "gate", "up", "down", "before", "after", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("qkv_bias", "o_bias", "gate_bias", "up_bias", "down_bias")),
    ]


class _Model(Structure):
    """As in the source."""

    _fields_ = [
        *((n, c_int64) for n in ("width", "heads", "key_heads", "dim", "inner", "vocabulary", "count", "bfloat16")),
        *((name, c_double) for name in ("epsilon", "scaling")),
        *((name, c_void_p) for name in ("embeddings", "head", "norm", "head_bias")),
        ("blocks", POINTER(_Block)),
        ("lattice_step", c_void_p),
    ]


class _Step(Structure):
    """As in the source."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "columns", "first", "angles", "processors")),
        *((name, c_void_p) for name in ("tokens", "positions", "mask")),
        ("mask_row", c_int64),
        *((name, c_void_p) for name in ("cosines", "sines", "keys", "values")),
        *((name, c_int64) for name in ("cache_row", "cache_head")),
        *((name, c_void_p) for name in ("lattice", "readers", "entries")),
    ]


def usable(model: PreTrainedModel) -> Kernel | None:
    """The function, if steps of a model of the Llama kind can go by it."""
    dim = model.get_decoder().layers[0].self_attn.head_dim
    if model.dtype not in native.DTYPES or dim % LANES or dim > WIDEST_HEAD or not may_be_copied(model):
        return None
    if model.config.get_text_config().rope_parameters["rope_type"] not in FIXED_ANGLES:
        return None
    if any(type(lattice) is not LatticeAttention for lattice in lattice_layers(model)):
        return None
    tokens: Any = model.get_input_embeddings()
    logits: Any = model.get_output_embeddings()
    layers = model.get_decoder().layers
    shapes = {tuple(x.weight.shape for x in (*_linears(layer.self_attn), *_linears(layer.mlp))) for layer in layers}
    if len(tokens.weight) != len(logits.weight) or len(shapes) > 1:
        return None
    return build.usable(SOURCE, model.device)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [child for child in module.children() if isinstance(child, nn.Linear)]


class NativeDecoder:
    """The step of a model for which `usable` has a function.

    Args:
        model: see `lace.engine.lean_decoder.is_llama_kind`.
        function: see `usable`.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, function: Kernel) -> None:
        self.model, self.call = model, function.call
        decoder: Any = model.get_decoder()
        self.rotary, self.numbered = decoder.rotary_emb, numbered_lattices(model)
        self.lattices = list(self.numbered.values())
        self.angles = torch.empty(0, device="cpu"), torch.empty(0, device="cpu")
        self.checked: Any = None
        """Places and shape of the caches that the last step has found fit; not they themselves, which would live on."""
        self.kept: list[torch.Tensor] = []
        """What compiled code reads by address."""
        blocks = [self._block(layer) for layer in decoder.layers]
        self.blocks = (_Block * len(blocks))(*blocks)
        self.pointers = c_void_p * len(blocks)
        attention, mlp = decoder.layers[0].self_attn, decoder.layers[0].mlp
        head: Any = model.get_output_embeddings()
        lattice_step = native.usable(model.device, model.dtype)
        embeddings = decoder.embed_tokens.weight.detach().contiguous()
        self.model_step = _Model(
            width=embeddings.shape[1],
            heads=attention.q_proj.out_features // attention.head_dim,
            key_heads=attention.k_proj.out_features // attention.head_dim,
            dim=attention.head_dim,
            inner=mlp.gate_proj.out_features,
            vocabulary=head.out_features,
            count=len(blocks),
            bfloat16=model.dtype == torch.bfloat16,
            epsilon=decoder.norm.variance_epsilon,
            scaling=attention.scaling,
            embeddings=self._address(embeddings),
            norm=self._padded(decoder.norm.weight),
            head=self._weight(head),
            head_bias=self._bias(head),
            blocks=self.blocks,
            lattice_step=lattice_step.address if lattice_step else None,
        )

    def _block(self, layer: Any) -> _Block:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = attention.q_proj, attention.k_proj, attention.v_proj
        return _Block(
            before=self._padded(layer.input_layernorm.weight),
            qkv=self._weight(*qkv),
            qkv_bias=self._bias(*qkv),
            q_norm=self._padded(attention.q_norm.weight) if hasattr(attention, "q_norm") else None,
            k_norm=self._padded(attention.k_norm.weight) if hasattr(attention, "k_norm") else None,
            o=self._weight(attention.o_proj),
            o_bias=self._bias(attention.o_proj),
            after=self._padded(layer.post_attention_layernorm.weight),
            gate=self._weight(mlp.gate_proj),
            gate_bias=self._bias(mlp.gate_proj),
            up=self._weight(mlp.up_proj),
            up_bias=self._bias(mlp.up_proj),
            down=self._weight(mlp.down_proj),
            down_bias=self._bias(mlp.down_proj),
        )

    def _address(self, tensor: torch.Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _padded(self, vector: torch.Tensor) -> int:
        return self._address(nn.functional.pad(vector.detach().float(), (0, -len(vector) % LANES)).clone())

    def _weight(self, *linears: nn.Linear) -> int:
        weight_OD = torch.cat([linear.weight for linear in linears])
        return self._address(panels(weight_OD.T, in_words=self.model.dtype == torch.bfloat16))

    def _bias(self, *linears: nn.Linear) -> int | None:
        if all(linear.bias is None for linear in linears):
            return None
        biases: list[torch.Tensor] = [x.weight.new_zeros(x.out_features) if x.bias is None else x.bias for x in linears]
        return self._padded(torch.cat(biases))

    @cached_property
    def lean(self) -> LeanDecoder:
        """For what compiled code cannot do."""
        return LeanDecoder(self.model)

    def __call__(self, given: StepInput) -> torch.Tensor:
        """Computes logits (R, V).

        Raises:
            MemoryError: if there is none for a step.
            IndexError: for a token or a position that cannot be.
        """
        tokens_R, positions_R, cache, mask, _ = given
        threads = given.thread_layout(self.lattices)
        reading = None if threads is None else self._reading(threads)
        known = isinstance(cache, RowCache | RollingCache) and (mask is None or mask.ndim == 2)
        if not known or torch.is_grad_enabled() or (threads is not None and reading is None):
            return self.lean.compute(given, threads)
        assert isinstance(cache, RowCache | RollingCache)
        first, column = cache.next_column
        keys, values, like = self._buffers(cache.layers)
        tokens_R, positions_R = tokens_R.long().contiguous(), positions_R.long().contiguous()
        mask = None if mask is None else mask.long().contiguous()
        # What follows knows no bounds.
        assert len(positions_R) == len(tokens_R) <= like.shape[0]
        assert first <= column < like.shape[2]
        assert mask is None or mask.shape == (len(tokens_R), column + 1 - first)
        logits_RV = torch.empty(len(tokens_R), self.model_step.vocabulary, dtype=torch.float32, device="cpu")
        step = _Step(
            rows=len(tokens_R),
            columns=column + 1 - first,
            first=first,
            processors=torch.get_num_threads(),
            tokens=tokens_R.data_ptr(),
            positions=positions_R.data_ptr(),
            mask=None if mask is None else mask.data_ptr(),
            mask_row=0 if mask is None else mask.stride(0),
            keys=addressof(keys),
            values=addressof(values),
            cache_row=like.stride(0),
            cache_head=like.stride(1),
        )
        if reading is not None:
            step.lattice, step.readers, step.entries = map(addressof, reading)
        arguments = byref(self.model_step), byref(step), logits_RV.data_ptr()
        angles = self._point_at(step, self.angles)
        if (failed := self.call(*arguments)) == BEYOND_ANGLES:
            angles = self._point_at(step, self._angles_of(int(positions_R.max()) + 1))
            failed = self.call(*arguments)
        del angles  # held until here: other host threads may have computed others meanwhile
        if failed == NO_MEMORY:
            raise MemoryError("no memory for a step of decoding")
        if failed:
            raise IndexError(f"no such tokens or positions: {tokens_R.tolist()}, {positions_R.tolist()}")
        if isinstance(cache, RowCache):
            cache.advance()
        return logits_RV

    def _reading(
        self, threads: ThreadLayout
    ) -> tuple[Structure, ctypes.Array[c_void_p], ctypes.Array[c_void_p]] | None:
        """The lattice's part of a step, and the grafted layer of each block and its entries; None where that goes by
        operators."""
        native_step = threads.native_step
        if native_step is None or native_step.dtype != self.model.dtype or not self.model_step.lattice_step:
            return None
        if any(lattice._forward_hooks for lattice in self.lattices):  # who watches is told by a call
            return None
        readers, entries = self.pointers(), self.pointers()
        for number, lattice in self.numbered.items():
            if lattice.enabled:
                readers[number] = addressof(lattice.native_layer(threads).layer)
                entries[number] = native_step.entries[lattice.index]
        return native_step.step, readers, entries

    def _buffers(self, layers: list[Any]) -> tuple[ctypes.Array[c_void_p], ctypes.Array[c_void_p], torch.Tensor]:
        """Where the keys and the values of each block begin, and one of these tensors, (R, G, C, K)."""
        buffers = [layer.keys for layer in layers] + [layer.values for layer in layers]
        shape, stride, addresses = buffers[0].shape, buffers[0].stride(), [x.data_ptr() for x in buffers]
        if (found := (shape, stride, addresses)) != self.checked:
            assert len(layers) == len(self.blocks)
            assert shape[1::2] == (self.model_step.key_heads, self.model_step.dim)
            assert stride[2:] == (shape[3], 1)
            assert all(x.shape == shape and x.stride() == stride for x in buffers)
            assert all(x.dtype == self.model.dtype and x.device.type == "cpu" for x in buffers)
            self.checked = found
        keys, values = self.pointers(*addresses[: len(layers)]), self.pointers(*addresses[len(layers) :])
        return keys, values, buffers[0]

    def _point_at(self, step: _Step, angles: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        cosines_PK, sines_PK = angles
        step.angles, step.cosines, step.sines = len(cosines_PK), cosines_PK.data_ptr(), sines_PK.data_ptr()
        return angles

    def _angles_of(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the angles of at least so many positions, (P, K), rounded as the model rounds them."""
        numbers = torch.arange(-(-positions // POSITIONS) * POSITIONS, device=self.model.device)[None]
        like = torch.empty(0, dtype=self.model.dtype, device=self.model.device)
        cosines_1PK, sines_1PK = self.rotary(like, numbers)
        self.angles = cosines_1PK[0].float().contiguous(), sines_1PK[0].float().contiguous()
        return self.angles
