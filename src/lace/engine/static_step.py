"""A decoding step over tensors of fixed shape and place, which a GPU can record once and then repeat.

Launching the kernels of a step takes a GPU's host longer than the GPU takes to run them. A CUDA graph launches all of
them at once, but only over the same memory each time. So here the column and the slot that a step writes are numbers
on the device, and it reads whole buffers, of which a mask hides what has not been written yet:

    main cache      p p p p t t t . . . . .       the mask opens one column more at each step
    lattice cache   0 t t t . . . . .             and one slot more

Shape letters: R rows, C columns, V vocabulary, L lattices, N threads, S steps, X keys and values of an entry.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from lace.engine.cache import RowCache, RowLayer
from lace.engine.decode_step import DecodeStep
from lace.engine.step_input import StepInput
from lace.lattice.cache import LatticeCache
from lace.lattice.graft import is_watched, lattice_layers, null_keys

REACH = 256
"""Steps of one recording: beyond them a longer piece of the buffers has to be read."""
ALIGNED = 8
"""Masks whose rows begin at multiples of this many numbers are read as they are, others copied first."""


def aligned(length: int) -> int:
    """The next length that keeps the rows of a mask aligned."""
    return -(-length // ALIGNED) * ALIGNED


def can_be_static(model: PreTrainedModel, *, with_lattice: bool) -> bool:
    """Whether a model's step may be recorded: its layers look at the whole context, by a mask that may be given, its
    rotary angles do not depend on lengths that the host would have to ask for, threads read each other by the usual
    step of decoding, if at all, and nobody else's hooks look on."""
    if torch.is_autocast_enabled(model.device.type) or is_watched(model):
        return False
    if with_lattice and lattice_layers(model)[0].config.visibility == "same_step":
        return False
    config = model.config.get_text_config()
    rope = str(getattr(config, "rope_parameters", None))
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config._attn_implementation in ("sdpa", "eager")
        and getattr(config, "sliding_window", None) is None
        and kinds == {"full_attention"}
        and "dynamic" not in rope
        and "longrope" not in rope
    )


class StaticLayer(CacheLayerMixin):
    """The buffers of a `RowLayer`, written at a column that the device knows, and read up to a fixed one."""

    is_sliding = False

    def __init__(self, layer: RowLayer, columns: int, column_1: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = layer.keys[: layer.rows, :, :columns]
        self.values = layer.values[: layer.rows, :, :columns]
        self.column_1 = column_1
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("the layer is filled from a prefill")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self.column_1, key_states)
        self.values.index_copy_(2, self.column_1, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return self.get_max_length()

    def get_max_length(self) -> int:
        assert self.keys is not None
        return int(self.keys.shape[2])


class StaticLatticeCache(LatticeCache):
    """A lattice cache for passes of one step each, whose slot the device knows.

    Args:
        model: a grafted one.
        lattices, threads, max_steps: as of any lattice cache.
    """

    def __init__(self, model: PreTrainedModel, lattices: int, threads: int, max_steps: int) -> None:
        config = lattice_layers(model)[0].config
        # In `strict` time a pass does not read the slot that it writes.
        self.slots = min(max_steps, config.horizon + (config.visibility == "strict")) if config.horizon else max_steps
        """Slots there are; with a horizon they are written in turn."""
        self.reach = self.slots
        """Slots that a pass reads."""
        self.step_1 = torch.zeros(1, dtype=torch.long, device=model.device)
        """Of the running pass."""
        super().__init__(config, null_keys(model), lattices, threads, aligned(1 + self.slots) - 1)

    def _allocate(self, lattices: int, threads: int, steps: int) -> None:
        super()._allocate(lattices, threads, steps)
        self.entries.zero_()  # what is hidden is still multiplied, by zero
        self.added_LNSN.fill_(-torch.inf)
        self.steps_LPN = self.steps_LSN.new_full((lattices, 1 + steps, threads), -1)
        """Step of each entry by its place, 1 + its slot; -1 where nothing was written."""

    @property
    def starts(self) -> None:
        """The slot that a pass writes is a number on the device."""

    def advance(self, steps_LNT: torch.Tensor) -> slice:
        """Marks the entries that the pass will write. In `strict` time those before it can be read from now on.

        Returns:
            Nothing of use: the slot is known to the device only.
        """
        steps_L1N = steps_LNT.transpose(1, 2)
        self.place_1 = self.step_1.remainder(self.slots) + 1
        self.steps_LPN.index_copy_(1, self.place_1, steps_L1N)
        shown_1, hidden_L1N = self.place_1, steps_L1N < 0
        if self.config.visibility == "strict":
            self.added_LNSN.index_fill_(2, self.place_1, -torch.inf)
            shown_1 = (self.step_1 - 1).remainder(self.slots) + 1
            hidden_L1N = self.steps_LPN.index_select(1, shown_1) < 0
        self.added_LNSN.index_copy_(2, shown_1, self._added(hidden_L1N))
        return slice(0, 1)

    def update(self, *given: Any, **named: Any) -> NoReturn:
        raise AssertionError("no usual step of decoding; give the engine static=False")

    def write(self, layer: int, slots: slice, entries_LTNX: torch.Tensor) -> None:
        self.entries[layer].index_copy_(1, self.place_1, entries_LTNX)

    def read_with_null(self, stop: int) -> torch.Tensor:
        return super().read_with_null(self.reach)

    def added_to_scores(self, stop: int, unwritten_LTN: torch.Tensor) -> torch.Tensor:
        return super().added_to_scores(self.reach, unwritten_LTN)

    def _mask(self, stop: int) -> None:
        """A pass does it, see `advance`."""

    def keep_lattices(self, index_L: torch.Tensor) -> None:
        super().keep_lattices(index_L)
        self.steps_LPN = self.steps_LPN[index_L]


class StaticStep:
    """Steps from `start` to the one before `stop`, over the same rows; on a GPU the first is recorded, the others
    repeat it.

    Args:
        decode: the step of a model that `can_be_static`.
        cache: the rows' main cache, its buffers `aligned`.
        mask_RC: which columns of the prompts are theirs; 1 or 0.
        lengths_R: tokens of the rows' prompts.
        prompt_width: columns of the prompts.
        start: the first of the steps.
        layout: the forward arguments `thread_ids`, `lattice_rows` and `lattice_cache` (a `StaticLatticeCache`), or
            none to leave the lattice off.
    """

    def __init__(
        self,
        decode: DecodeStep,
        cache: RowCache,
        mask_RC: torch.Tensor,
        lengths_R: torch.Tensor,
        prompt_width: int,
        start: int,
        layout: dict[str, Any],
    ) -> None:
        self.decode, self.cache, self.layout = decode, cache, layout
        self.lengths_R, self.prompt_width = lengths_R, prompt_width
        rows, room = mask_RC.shape
        self.stop = (start // REACH + 1) * REACH
        columns = min(aligned(prompt_width + self.stop), room)
        keys = cache.row_layers[0].keys
        self.given = torch.zeros(2 * rows + 1, dtype=torch.long, device=keys.device)
        """The step's tokens, the rows' steps, and the step."""
        self.tokens_R, self.steps_R, self.step_1 = self.given.split([rows, rows, 1])
        self.column_1 = torch.zeros_like(self.step_1)
        self.static_cache = Cache(layers=[StaticLayer(layer, columns, self.column_1) for layer in cache.row_layers])
        hidden_RC = mask_RC[:, :columns] == 0
        hidden_RC[:, prompt_width + start :] = True
        self.added_RC = torch.zeros(rows, columns, dtype=keys.dtype, device=keys.device)
        self.added_RC.masked_fill_(hidden_RC, -torch.inf)
        if layout:
            lattice_cache: StaticLatticeCache = layout["lattice_cache"]
            lattice_cache.reach = min(self.stop, lattice_cache.slots)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_RV = torch.empty(0)

    def __call__(self, tokens: list[int], steps: list[int], step: int) -> torch.Tensor:
        """Feeds the tokens of `step`.

        Args:
            tokens: one for each row.
            steps: `step`, or -1 of a row that has ended.

        Returns:
            Logits (R, V), valid until the next call.
        """
        self.given.copy_(torch.tensor([*tokens, *steps, step]))
        if self.graph is not None:
            self.graph.replay()
        elif self.given.device.type == "cuda":
            self._record()
        else:
            self._compute()
        self.cache.advance()
        return self.logits_RV

    def _record(self) -> None:
        """Computes the step once, so that all is in place, and records it."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._compute()
            logits_RV = self.logits_RV.clone()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._compute()
        self.logits_RV.copy_(logits_RV)

    def _compute(self) -> None:
        """Doing it twice changes nothing; and no number comes from the host, as it would to `torch.where`."""
        torch.add(self.step_1, self.prompt_width, out=self.column_1)
        self.added_RC.index_fill_(1, self.column_1, 0)
        arguments = dict(self.layout)
        if arguments:
            arguments["lattice_cache"].step_1.copy_(self.step_1)
            arguments["steps"] = self.steps_R[:, None]
        positions_R = (self.lengths_R + self.steps_R).masked_fill(self.steps_R < 0, 0)
        mask_R11C = self.added_RC[:, None, None]
        self.logits_RV = self.decode(StepInput(self.tokens_R, positions_R, self.static_cache, mask_R11C, arguments))
