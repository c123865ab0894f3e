"""A step of decoding: one token of every row through the model, by the fastest way that its kind and place allow.

    NativeDecoder   one call of compiled code: decoders of the Llama kind on a processor
    LeanDecoder     few operators: decoders of the Llama kind anywhere
    WholeModel      the model's own forward pass: all others; the reference

All compute the same: `tests/engine/test_native_decoder.py`, `test_lean_decoder.py`.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lace.engine import native_decoder
from lace.engine.lean_decoder import LeanDecoder, is_llama_kind
from lace.engine.native_decoder import NativeDecoder
from lace.engine.step_input import StepInput


class WholeModel:
    """The step by the model's own forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, given: StepInput) -> torch.Tensor:
        """Computes logits (R, V)."""
        out = self.model(
            input_ids=given.tokens_R[:, None],
            attention_mask=given.mask,
            position_ids=given.positions_R[:, None],
            past_key_values=given.cache,
            use_cache=True,
            **given.layout,
        )
        logits_RV: torch.Tensor = out.logits[:, -1]
        return logits_RV


DecodeStep = WholeModel | LeanDecoder | NativeDecoder
"""One token of every row."""


class DecodeSteps:
    """Makes the step of a model, and keeps it.

    Args:
        model: any.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._made: DecodeStep | None = None
        self._state: list[tuple[int, int]] = []

    def now(self, *, lean: bool = True) -> DecodeStep:
        """The step of the model as it is now; asked for again, the same one until the weights change.

        Args:
            lean: whether it may go by another way than the model's own forward pass.
        """
        if not lean or not is_llama_kind(self.model):
            return WholeModel(self.model)
        state = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.model.parameters()]
        function = native_decoder.usable(self.model)
        kind = LeanDecoder if function is None else NativeDecoder
        if not isinstance(self._made, kind) or state != self._state:
            self._made = LeanDecoder(self.model) if function is None else NativeDecoder(self.model, function)
            self._state = state
        return self._made
