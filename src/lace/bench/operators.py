"""Operators that one step of decoding dispatches, before any compilation: the same on every machine, with a C compiler
and without.

Counted are the operators of torch (`aten::`) that the profiler sees, in two ways:

    leaf      operators that call no other one: also views, allocations and the like, work of the processor alone
    compute   innermost operators that compute: on a GPU each launches a kernel, about
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

from lace.bench.subjects import prompt_of
from lace.engine.engine import Engine
from lace.engine.result import Strategy
from lace.engine.sampling import SamplingParams
from lace.native.build import switched_off

BEFORE = 4
"""Steps ahead of the one that is counted: openings are written, buffers are there."""
NOT_COMPUTING = frozenset(
    (
        *(
            "as_strided",
            "view",
            "_unsafe_view",
            "_reshape_alias",
            "reshape",
            "flatten",
            "unflatten",
            "expand",
            "permute",
        ),
        *("transpose", "t", "slice", "select", "narrow", "unsqueeze", "squeeze", "unbind", "split", "split_with_sizes"),
        *("tensor_split", "chunk", "alias", "detach", "detach_", "lift_fresh", "contiguous", "to", "is_nonzero"),
        *("empty", "empty_like", "empty_strided", "resize_", "result_type", "resolve_conj", "resolve_neg"),
    )
)
"""Views, allocations and questions."""


class Operators(NamedTuple):
    """Of one step."""

    leaf: int
    compute: int


def count_operators(engine: Engine, threads: int, context: int, strategy: Strategy) -> Operators:
    """Counts one step of one lattice.

    Args:
        engine: on the CPU.
        threads: of the lattice.
        context: tokens of the prompt.
        strategy: `lace`, or `independent` for the lattice off.
    """
    params = SamplingParams(threads=threads, max_tokens=BEFORE + 2, grace=None)
    lattice = engine.new_lattice(prompt_of(engine, context), params, strategy, lazy=True)
    steps = engine.steps([lattice], strategy)
    with switched_off():
        for _ in range(lattice.max_steps - 1):
            next(steps)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            next(steps)
    events = [event for event in profiler.events() if event.name.startswith("aten::")]
    return Operators(
        sum(not any(child.name.startswith("aten::") for child in event.cpu_children) for event in events),
        sum(_computes(event) and not any(map(_contains, event.cpu_children)) for event in events),
    )


def _computes(event: Any) -> bool:
    return event.name.startswith("aten::") and event.name.removeprefix("aten::") not in NOT_COMPUTING


def _contains(event: Any) -> bool:
    return _computes(event) or any(map(_contains, event.cpu_children))
