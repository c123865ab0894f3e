"""Grafts lattices onto any transformers decoder whose layers have `self_attn.o_proj`.

Nothing of the base model is replaced. A side path (`LatticeAttention`, or the control `MLPControl`) becomes a submodule
of each chosen `self_attn`, and three kinds of forward hooks lead the data past it:

    decoder(..., steps, thread_ids, lattice_rows, lattice_cache)   pre-hook: forward arguments -> one ThreadLayout
      layer.self_attn(..., thread_layout)                          pre-hook: takes the layout aside
        o_proj(x)                                                  pre-hook: x + lattice(x, layout)

The layout travels as forward arguments only, so that gradient checkpointing, which calls a layer a second time during
the backward pass, replays it. A forward pass without these arguments is that of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.cache import LatticeCache
from lace.lattice.config import LatticeConfig
from lace.lattice.fingerprint import fingerprint
from lace.lattice.mlp_control import MLPControl

Model = TypeVar("Model", bound=PreTrainedModel)
SidePath = LatticeAttention | MLPControl
LAYOUT_ARGUMENTS = ("steps", "thread_ids", "lattice_rows")


def graft(model: Model, config: LatticeConfig | None = None) -> Model:
    """Adds an untrained lattice to a loaded decoder, in place; its outputs stay exactly what they were.

    Args:
        model: a causal language model of transformers, after `from_pretrained` (which would overwrite the zeros).
        config: the default suits models of a billion parameters and more.

    Returns:
        The same model. Its forward now also takes `steps`, `thread_ids`, `lattice_rows` and `lattice_cache`, see
        `ThreadLayout.build`.

    Raises:
        ValueError: if the model is grafted already, or has no layers that can carry a lattice; names the model type.
    """
    config = config or LatticeConfig()
    if lattice_layers(model):
        raise ValueError("this model carries a lattice already")
    decoder = _decoder(model)
    layers: Any = decoder.layers
    carriers = config.layer_indices(len(layers))
    for index in carriers:
        attention = getattr(layers[index], "self_attn", None)
        if not isinstance(getattr(attention, "o_proj", None), nn.Module):
            raise ValueError(
                f"cannot graft model type {model.config.model_type!r}: its layer {index} has no self_attn.o_proj"
            )
    hook = _DecoderHook(str(model.config.model_type))
    for place, index in enumerate(carriers):
        hook.lattices.append(_attach(layers[index].self_attn, config, place, hook))
    decoder.register_forward_pre_hook(hook.build_layout, with_kwargs=True)
    decoder.register_forward_hook(hook.check_delivery)
    model.lattice_config = config  # type: ignore[assignment]
    model.base_fingerprint = None if model.device.type == "meta" else fingerprint(model)  # type: ignore[assignment]
    return model


def _decoder(model: PreTrainedModel) -> nn.Module:
    kind = model.config.model_type
    decoder: nn.Module | None = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is None or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ValueError(f"cannot graft model type {kind!r}: it has no list of decoder layers")
    return decoder


def _attach(attention: nn.Module, config: LatticeConfig, place: int, decoder: _DecoderHook) -> SidePath:
    o_proj: Any = attention.o_proj
    weight = next(attention.parameters())
    wide = weight.dtype.is_floating_point and weight.dtype.itemsize > 1  # else a quantised layer: keep the default
    side_path = MLPControl if config.kind == "mlp" else LatticeAttention
    lattice: SidePath = side_path(o_proj.in_features, config, place)
    lattice.to(device=weight.device, dtype=weight.dtype if wide else None)
    attention.lattice = lattice
    hooks = _AttentionHooks(lattice, decoder)
    attention.register_forward_pre_hook(hooks.take_layout, with_kwargs=True)
    o_proj.register_forward_pre_hook(hooks.add_lattice)
    return lattice


class _AttentionHooks:
    """Carries the layout from a `self_attn` call to the `o_proj` call inside of it."""

    def __init__(self, lattice: SidePath, decoder: _DecoderHook) -> None:
        self.lattice, self.decoder = lattice, decoder
        self.layout: ThreadLayout | None = None

    def take_layout(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs = dict(kwargs)
        self.layout = kwargs.pop("thread_layout", None)
        self.decoder.undelivered = self.decoder.undelivered and self.layout is None
        return args, kwargs

    def add_lattice(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        layout, self.layout = self.layout, None
        if layout is None or not self.lattice.enabled:
            return None
        x_RTD = args[0]
        return (x_RTD + self.lattice(x_RTD, layout), *args[1:])


class _DecoderHook:
    """Turns the forward arguments of the thread layout into the one object that the layers share."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.lattices: list[SidePath] = []
        self.undelivered = False
        """Whether a layout was built in this pass that no attention layer has seen yet."""

    def build_layout(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs = dict(kwargs)
        given = {name: kwargs.pop(name, None) for name in LAYOUT_ARGUMENTS}
        cache = kwargs.pop("lattice_cache", None)
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given) or not any(lattice.enabled for lattice in self.lattices):
            return args, kwargs
        if missing:
            raise ValueError(f"the thread layout lacks {', '.join(missing)}; give all of {', '.join(given)}")
        self.undelivered = True
        kwargs["thread_layout"] = ThreadLayout.build(self.lattices[0].config, **given, cache=cache)
        return args, kwargs

    def check_delivery(self, module: nn.Module, args: Any, output: Any) -> None:
        """Some decoders swallow unknown arguments; threads would not read each other, and nobody would notice."""
        if self.undelivered:
            self.undelivered = False
            raise ValueError(
                f"model type {self.model_type!r} does not pass the thread layout on to its attention layers"
            )


def is_watched(model: nn.Module) -> bool:
    """Whether somebody else's hooks hang on a model, so that it has to be called as a whole."""
    return any(
        not isinstance(getattr(hook, "__self__", None), (_DecoderHook, _AttentionHooks))
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )


def numbered_lattices(model: PreTrainedModel) -> dict[int, LatticeAttention]:
    """The lattice of each decoder layer that has one, by the layer's number."""
    decoder: Any = model.get_decoder()
    return {
        number: module
        for number, layer in enumerate(getattr(decoder, "layers", ()))
        for module in layer.modules()
        if isinstance(module, LatticeAttention)
    }


def lattice_layers(model: nn.Module) -> list[SidePath]:
    """The grafted side paths of a model, in the order of its layers; empty for a plain model."""
    return [module for module in model.modules() if isinstance(module, SidePath)]


@contextmanager
def lattice_off(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes exactly what its base model does."""
    with _switched(model, "enabled", False):
        yield


@contextmanager
def thread_gradients_cut(model: nn.Module) -> Iterator[None]:
    """Within the block no gradient flows through the lattice from one thread's tokens into what others have written
    (nor, if the config says `read_self`, into its own entries): the same outputs, another gradient."""
    with _switched(model, "cut_gradients", True):
        yield


@contextmanager
def _switched(model: nn.Module, name: str, value: bool) -> Iterator[None]:
    layers = lattice_layers(model)
    before = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, value)
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            setattr(layer, name, old)


def lattice_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the lattice alone, e.g. to train nothing else."""
    return ((name, p) for name, p in model.named_parameters() if ".lattice." in name)


def new_lattice_cache(
    model: PreTrainedModel, lattices: int, threads: int, max_steps: int, *, swapped: bool = False
) -> LatticeCache:
    """An empty lattice cache on the model's device and in its dtype; of no size for a control that exchanges nothing.

    Args:
        model: a grafted model.
        lattices, threads, max_steps, swapped: see `LatticeCache`.
    """
    null_keys_YK = null_keys(model)
    return LatticeCache(lattice_layers(model)[0].config, null_keys_YK, lattices, threads, max_steps, swapped=swapped)


def null_keys(model: PreTrainedModel) -> torch.Tensor:
    """The null key of each grafted layer, (Y, K); Y is 0 for a control that exchanges nothing."""
    first = lattice_layers(model)[0]
    keys: list[torch.Tensor] = [
        layer.null_key for layer in lattice_layers(model) if isinstance(layer, LatticeAttention)
    ]
    return torch.stack(keys).detach() if keys else first.up_proj.weight.new_empty(0, first.config.head_dim)
