"""What a lattice does: how wide its gates stand open, and how much of its attention goes to other threads.

    gate                    mean of sigmoid(g_h) over generated tokens and heads; 1 for a lattice without gates
    cross-thread attention  softmax mass of a query on entries of other threads, the rest lying on the null entry (and,
                            if the config says `read_self`, on the thread's own entries); mean over heads and over the
                            queries that see at least one entry of another thread

By generated step the latter is the share over the life of a thread, as in the paper's Figures 6 and 7 (arXiv
2604.15529). Observing changes no output: hooks compute each layer's reading a second time, in float32.

Shape letters as in `lace.lattice.attention`; M is N again, for the threads that are read, and S counts steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.graft import numbered_lattices
from lace.lattice.rope import rotate


@dataclass(frozen=True)
class LayerObservation:
    """What one layer's lattice did, in one forward pass or in several taken together."""

    layer: int
    """Number of the decoder layer."""
    first_step: int
    """The generated step that the first row of `sums_S4` is about."""
    sums_S4: torch.Tensor
    """(S, 4), float32 on the CPU. For each step: the sum of gates, the tokens they are of, the sum of cross-thread
    attention, and the queries it is of."""

    @property
    def gate(self) -> float:
        """Mean gate."""
        return _ratio(self.sums_S4.sum(dim=0)[:2]).item()

    @property
    def cross_thread_attention(self) -> float:
        """Mean share; nan if no query saw an entry of another thread."""
        return _ratio(self.sums_S4.sum(dim=0)[2:]).item()

    @property
    def gate_S(self) -> torch.Tensor:
        """Mean gate of each step, (S,); nan where no token was."""
        return _ratio(self.sums_S4[:, :2])

    @property
    def cross_thread_attention_S(self) -> torch.Tensor:
        """Mean share of each step, (S,); nan where no query saw an entry of another thread."""
        return _ratio(self.sums_S4[:, 2:])


def _ratio(sum_and_count: torch.Tensor) -> torch.Tensor:
    total, count = sum_and_count.unbind(-1)
    return total / count


def pooled(passes: Sequence[LayerObservation]) -> LayerObservation:
    """Takes several forward passes of one layer together, e.g. all steps of a decoding.

    Raises:
        ValueError: if there are none, or they are of several layers.
    """
    layers = {seen.layer for seen in passes}
    if len(layers) != 1:
        raise ValueError(f"only observations of one layer can be pooled, not of layers {sorted(layers)}")
    first = min(seen.first_step for seen in passes)
    last = max(seen.first_step + len(seen.sums_S4) for seen in passes)
    sums_S4 = torch.zeros(last - first, 4)
    for seen in passes:
        start = seen.first_step - first
        sums_S4[start : start + len(seen.sums_S4)] += seen.sums_S4
    return LayerObservation(layers.pop(), first, sums_S4)


@contextmanager
def observe_lattice(model: PreTrainedModel) -> Iterator[dict[int, list[LayerObservation]]]:
    """Within the block every forward pass is observed, with and without a cache.

    Args:
        model: grafted or plain; not wrapped for several processes.

    Yields:
        For each layer with a `LatticeAttention`, by its number, what it did in each pass so far. Passes without
        generated tokens (a prefill, blind lattices, the lattice off) leave no trace.
    """
    decoder: Any = model.get_decoder()
    lattices = numbered_lattices(model)
    watch = _Watch({number: [] for number in lattices})
    # Before the graft's own hook, which takes the steps out of the arguments.
    hooks = [decoder.register_forward_pre_hook(watch.take_steps, prepend=True, with_kwargs=True)]
    hooks += [module.register_forward_hook(partial(watch.record, number)) for number, module in lattices.items()]
    try:
        yield watch.found
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    """The hooks of an observation, and what they have found."""

    def __init__(self, found: dict[int, list[LayerObservation]]) -> None:
        self.found = found
        self.steps_RT = torch.empty(0)
        self.first_step = 0
        self.length = 0

    def take_steps(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Notes the generated steps that the coming pass covers."""
        self.length = 0
        if (steps_RT := kwargs.get("steps")) is not None and (generated := steps_RT[steps_RT >= 0]).numel():
            self.steps_RT, self.first_step = steps_RT, int(generated.min())
            self.length = int(generated.max()) - self.first_step + 1

    @torch.no_grad()
    def record(self, number: int, module: LatticeAttention, args: tuple[Any, ...], output: torch.Tensor) -> None:
        if not self.length:
            return
        x_RTD, layout = args
        with torch.autocast(x_RTD.device.type, enabled=False):
            _, gate_RTH, mass_LNTM = read_again(module, x_RTD, layout)
        share_LNT = mass_LNTM.sum(dim=-1) - _own(mass_LNTM)
        seen_LNTM = layout.seen_LNTSN.any(dim=3)
        sees_LNT = seen_LNTM.sum(dim=-1) > _own(seen_LNTM)
        sums_S4 = torch.zeros(self.length, 4, device=x_RTD.device)
        # An absent thread stands at row 0, but sees nobody, so that it counts for nothing.
        for column, steps, values, counted in (
            (0, self.steps_RT, gate_RTH.mean(dim=-1), self.steps_RT >= 0),
            (2, self.steps_RT[layout.rows_LN], share_LNT, sees_LNT),
        ):
            place = steps[counted] - self.first_step
            sums_S4[:, column].index_add_(0, place, values[counted])
            sums_S4[:, column + 1].index_add_(0, place, torch.ones_like(values[counted]))
        self.found[number].append(LayerObservation(number, self.first_step, sums_S4.cpu()))


def _own(of_LNTM: torch.Tensor) -> torch.Tensor:
    """What of each thread's (L, N, T, M) is about itself, (L, N, T)."""
    return of_LNTM.diagonal(dim1=1, dim2=3).transpose(1, 2)


def read_again(
    module: LatticeAttention, x_RTD: torch.Tensor, layout: ThreadLayout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reading of one layer, in float32 and with its weights; to be called after the module's own forward pass,
    which fills the cache.

    Args:
        module: the layer's lattice.
        x_RTD: its input.
        layout: of the same pass.

    Returns:
        What each head reads before the gate, (R, T, H, K); the gates, (R, T, H); and the attention mass on each
        thread's entries, mean over heads, (L, N, T, M).
    """
    tokens = x_RTD.shape[1]
    heads, dim = module.config.num_heads, module.config.head_dim
    q_RTHK, k_LSNK, v_LSNK, gate_RTH = reading_parts(module, x_RTD, layout)

    # Each entry's value also says whose it is: what is read of these dimensions is the mass on each thread.
    lattices, steps, threads, _ = k_LSNK.shape
    whose_LSNM = torch.eye(threads, device=x_RTD.device).expand(lattices, steps, -1, -1)
    v_LEX = nn.functional.pad(torch.cat((v_LSNK, whose_LSNM), dim=-1).flatten(1, 2), (0, 0, 1, 0))
    k_LEK = torch.cat((module.null_key.float().expand(lattices, 1, -1), k_LSNK.flatten(1, 2)), dim=1)
    read_LHQX = nn.functional.scaled_dot_product_attention(
        q_RTHK[layout.rows_LN].flatten(1, 2).transpose(1, 2),
        k_LEK[:, None].expand(-1, heads, -1, -1),
        v_LEX[:, None].expand(-1, heads, -1, -1),
        attn_mask=layout.seen_LQE[:, None],
    )
    read_LHQK, mass_LHQM = read_LHQX.split([dim, threads], dim=-1)
    read_RTHK = read_LHQK.transpose(1, 2).reshape(-1, tokens, heads, dim)[layout.place_R]
    return read_RTHK, gate_RTH, mass_LHQM.mean(dim=1).unflatten(1, (threads, tokens))


def reading_parts(
    module: LatticeAttention, x_RTD: torch.Tensor, layout: ThreadLayout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a layer's reading is made of, in float32 and with its weights; arguments as of `read_again`.

    Returns:
        Queries (R, T, H, K); the keys and values that each lattice may read, both (L, S, N, K); gates (R, T, H).
    """
    heads, dim = module.config.num_heads, module.config.head_dim
    low_RTZ = nn.functional.linear(x_RTD.float(), module.down_proj.weight.float())
    z_RTZ = nn.functional.rms_norm(low_RTZ, low_RTZ.shape[-1:], module.norm.weight.float(), module.norm.eps)
    q, k_RTK, v_RTK, g_RTH = nn.functional.linear(z_RTZ, module.qkvg_proj.weight.float()).split(module.split, dim=-1)
    cos, sin = layout.angles
    q_RTHK = rotate(q.unflatten(-1, (heads, dim)), cos[:, :, None], sin[:, :, None])
    if layout.cache is None:
        k_LSNK = rotate(k_RTK, cos, sin)[layout.rows_LN].transpose(1, 2)
        v_LSNK = v_RTK[layout.rows_LN].transpose(1, 2)
    else:
        k_LSNK, v_LSNK = layout.cache.read(module.index, layout.slots)
        k_LSNK, v_LSNK = k_LSNK.float(), v_LSNK.float()
    gate_RTH = torch.sigmoid(g_RTH) if module.config.gate == "head" else torch.ones_like(q_RTHK[..., 0])
    return q_RTHK, k_LSNK, v_LSNK, gate_RTH


def lattice_metrics(
    found: Mapping[int, Sequence[LayerObservation]],
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> dict[str, float]:
    """What a training run logs of an observation: `gate/LAYER` and `cross_thread_attention/LAYER`, both in [0, 1],
    LAYER being the number of the decoder layer. A mean over nothing is left out.

    Args:
        found: as `observe_lattice` yields it.
        add_up: sums a tensor over the processes of a run.
    """
    if not found:
        return {}
    sums_Y4 = torch.stack([torch.zeros(4) + sum(seen.sums_S4.sum(dim=0) for seen in found[y]) for y in found])
    metrics = {}
    for layer, (gates, tokens, shares, queries) in zip(found, add_up(sums_Y4).tolist(), strict=True):
        if tokens:
            metrics[f"gate/{layer}"] = gates / tokens
        if queries:
            metrics[f"cross_thread_attention/{layer}"] = shares / queries
    return metrics
