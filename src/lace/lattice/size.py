"""What a lattice costs: parameters, and cache bytes per token beside those of the main cache."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from lace.lattice.attention import LatticeAttention
from lace.lattice.graft import lattice_layers, lattice_parameters


@dataclass(frozen=True)
class LatticeSize:
    """Sizes of a grafted (or plain) model."""

    layers: list[int]
    """Grafted decoder layers."""
    parameters: int
    """New parameters of the lattice."""
    base_parameters: int
    lattice_bytes: int
    """Lattice cache, bytes per token of one thread; 0 for a control that exchanges nothing."""
    main_bytes: int
    """Main key-value cache, bytes per token of one thread."""

    @property
    def share(self) -> float:
        """New parameters as a share of the base model's."""
        return self.parameters / self.base_parameters


def attention_widths(config: PretrainedConfig) -> tuple[int, int]:
    """Widths of all query heads and of all key heads of a layer."""
    heads: int = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * head_dim, (getattr(config, "num_key_value_heads", None) or heads) * head_dim


def lattice_size(model: PreTrainedModel) -> LatticeSize:
    """Counts without computing anything, so a model on the meta device will do."""
    lattice = sum(p.numel() for _, p in lattice_parameters(model))
    total = sum(p.numel() for p in model.parameters())
    config = model.config.get_text_config()
    _, keys = attention_widths(config)
    element = next(model.parameters()).element_size()
    readers = [layer for layer in lattice_layers(model) if isinstance(layer, LatticeAttention)]
    indices = [n for n, layer in enumerate(model.get_decoder().layers) if lattice_layers(layer)]
    return LatticeSize(
        layers=indices,
        parameters=lattice,
        base_parameters=total - lattice,
        lattice_bytes=sum(2 * layer.config.head_dim * element for layer in readers),
        main_bytes=2 * config.num_hidden_layers * keys * element,
    )
