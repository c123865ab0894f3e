"""Lattice attention: a thread's query reads what the other threads of its prompt have written.

The side path of LACE (arXiv 2604.15529) on the output of a layer's causal attention, before `o_proj`:

    z = norm(W_down x)                                  down to a low dimension
    q_h, k, v, g_h = W_qkvg z                           several query heads, one key and value for all of them
    q_h, k turned by (step, thread id)                  rotary dimensions split between time and thread
    w_h = softmax over {null} + {visible entries} of q_h . k / sqrt(K)
    x + W_up concat_h( sigmoid(g_h) * sum_j w_hj v_j )  gated residual; W_up starts at zero

The null entry has a learned key and the value zero: attending to it is reading nobody. A thread that sees no entry
therefore adds exactly nothing, and a fresh graft (W_up = 0) leaves its base model as it was, bit for bit.

Shape letters: R rows (all threads of all lattices), T tokens of the pass, L lattices, N threads of a lattice,
S steps that can be read, D width of the SDPA output, H query heads, K dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lace.lattice.cache import DecodingWeights, LatticeCache
from lace.lattice.config import LatticeConfig
from lace.lattice.grid import RowGrid
from lace.lattice.native import NativeLayer, NativeRows, NativeStep, usable
from lace.lattice.rope import half_turned, rotate, turned_angles
from lace.lattice.visibility import visible

EPSILON = 1e-6
"""Of the norm of the down-projected input."""
SMALLEST_BLOCK, MOST_BLOCKS = 64, 8
"""Columns that attend together in a pass of several tokens: fewer leave less out, more cost a kernel each."""


@dataclass(frozen=True)
class ThreadLayout:
    """Where the rows of one forward pass stand in their lattices; made once a pass, shared by all grafted layers.

    What not every pass needs is made when it is first asked for.
    """

    config: LatticeConfig
    grid: RowGrid
    steps_RT: torch.Tensor
    steps_LNT: torch.Tensor
    cache: LatticeCache | None
    slots: slice
    """Slots of the cache that this pass writes."""
    one_step: bool
    """Whether the pass is an ordinary step of decoding: each thread reads all entries so far, its own apart."""
    _by_dtype: dict[tuple[str, torch.dtype], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        config: LatticeConfig,
        steps: torch.Tensor,
        thread_ids: torch.Tensor,
        lattice_rows: torch.Tensor,
        cache: LatticeCache | None = None,
    ) -> ThreadLayout:
        """Derives the layout from the forward arguments.

        Args:
            config: the lattice's config.
            steps: (R, T) generated step of each token, -1 for prompt and padding.
            thread_ids: (R,) id of each row's thread in its lattice.
            lattice_rows: (L, N) rows of each lattice, -1 for no thread. Each row stands in exactly one lattice.
            cache: earlier entries; the pass then covers the next T steps of all its lattices in lock-step. While the
                same tensors `thread_ids` and `lattice_rows` are given again, they must not have been changed.
        """
        grid = cache.grid if cache is not None else None
        if grid is None or grid.lattice_rows is not lattice_rows or grid.thread_ids is not thread_ids:
            grid = RowGrid.build(config, lattice_rows, thread_ids, look=cache is not None)
        steps_LNT = grid.of_threads(steps)
        slots, one_step = slice(0, steps.shape[1]), False
        if cache is not None:
            cache.grid, slots = grid, cache.advance(steps_LNT)
            plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled(steps.device.type)
            memory = config.visibility != "same_step" and cache.source_L is None
            one_step = plain and memory and steps.shape[1] == 1
        return cls(config, grid, steps, steps_LNT, cache, slots, one_step)

    @property
    def rows_LN(self) -> torch.Tensor:
        """Row of each thread, 0 where there is none (such entries are never visible)."""
        return self.grid.rows_LN

    @property
    def place_R(self) -> torch.Tensor:
        """Index of each row in the flattened (L, N) grid."""
        return self.grid.place_R

    @cached_property
    def written_RT(self) -> torch.Tensor:
        """Which tokens are in the lattice: what threads have written, not prompt and padding."""
        return self.steps_RT >= 0

    @cached_property
    def unwritten_LTN(self) -> torch.Tensor:
        """Threads that are not there, or have nothing to write."""
        return self.steps_LNT.transpose(1, 2) < 0

    @cached_property
    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of each token's rotary angles, both (R, T, K) in float32."""
        return turned_angles(self.steps_RT, self.grid.time_K, self.grid.thread_R1K)

    @cached_property
    def seen_LNTSN(self) -> torch.Tensor:
        """Which entries of S steps the token of each column sees."""
        key_steps_LSN = self.steps_LNT.transpose(1, 2) if self.cache is None else self.cache.steps_read(self.slots)
        threads = torch.arange(self.steps_LNT.shape[1], device=self.steps_LNT.device)
        same_NN = threads[:, None] == threads
        return visible(
            self.steps_LNT[:, :, :, None, None],
            key_steps_LSN[:, None, None],
            same_NN[None, :, None, None],
            self.config.visibility,
            self.config.read_self,
            self.config.horizon,
        )

    @cached_property
    def seen_LQE(self) -> torch.Tensor:
        """Which of the E = 1 + S * N entries (null, then time-major) the Q = N * T queries (thread-major) see."""
        return nn.functional.pad(self.seen_LNTSN.flatten(3).flatten(1, 2), (1, 0), value=True)

    @cached_property
    def reading_blocks(self) -> list[tuple[slice, slice]]:
        """The columns of the pass in blocks, each with the steps that its tokens can see.

        Half of all pairs of column and step lie in the future, and what stands before the first column that sees
        anything, the prompt, is in no block: attention over blocks leaves out most of what it would throw away. At
        least one block is there, so that every parameter gets a gradient, if of zeros.
        """
        seen_TS = self.seen_LNTSN.any(dim=4).any(dim=1).any(dim=0).cpu()
        columns, _ = seen_TS.nonzero(as_tuple=True)
        end, first = len(seen_TS), int(columns.min()) if len(columns) else len(seen_TS) - 1
        size = max(SMALLEST_BLOCK, -(-(end - first) // MOST_BLOCKS))
        blocks = []
        for start in range(first, end, size):
            block = slice(start, min(start + size, end))
            steps = seen_TS[block].any(dim=0).nonzero()
            blocks.append((block, slice(int(steps[0]), int(steps[-1]) + 1) if len(steps) else slice(0, 0)))
        return blocks

    def angles_as(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`angles`, rounded once a pass."""
        if dtype == torch.float32:
            return self.angles
        key = "angles", dtype
        if key not in self._by_dtype:
            self._by_dtype[key] = tuple(angles.to(dtype) for angles in self.angles)
        cos_RTK, sin_RTK = self._by_dtype[key]
        return cos_RTK, sin_RTK

    def added_to_scores(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """For each block (L, 1, Q, E) 0 where an entry is seen, else -inf; Q and E are the block's. SDPA would make it
        of booleans in every layer anew."""
        key = "added", dtype
        if key not in self._by_dtype:
            self._by_dtype[key] = []
            for columns, steps in self.reading_blocks:
                seen_LQE = self.seen_LNTSN[:, :, columns, steps].flatten(3).flatten(1, 2)
                unseen_L1QE = ~nn.functional.pad(seen_LQE, (1, 0), value=True)[:, None]
                zeros_L1QE = torch.zeros(unseen_L1QE.shape, dtype=dtype, device=unseen_L1QE.device)
                self._by_dtype[key].append(zeros_L1QE.masked_fill_(unseen_L1QE, -torch.inf))
        added: list[torch.Tensor] = self._by_dtype[key]
        return added

    @property
    def step_end(self) -> int:
        """Slot before which a step of decoding reads: its own entries are not there yet if time is `strict`."""
        end: int = self.slots.start if self.config.visibility == "strict" else self.slots.stop
        return end

    @cached_property
    def step_added_to_scores(self) -> torch.Tensor:
        """(L, 1, N, E) of a step of decoding, from the cache."""
        assert self.cache is not None
        return self.cache.added_to_scores(self.step_end, self.unwritten_LTN)

    @cached_property
    def step_entries(self) -> tuple[torch.Tensor, ...]:
        """What a step of decoding reads in each layer, (L, S, N, 2 K); views, which show what it writes."""
        assert self.cache is not None
        return self.cache.read_with_null(self.step_end).unbind()

    @cached_property
    def native_step(self) -> NativeStep | None:
        """A step of decoding as compiled code takes it; None where it cannot."""
        cache = self.cache
        if not self.one_step or cache is None or cache.starts is None:
            return None
        kernel = usable(cache.entries.device, cache.entries.dtype)
        if kernel is None:
            return None
        if cache.native_rows is None or not cache.native_rows.are_those_of(cache, self.grid):
            cache.native_rows = NativeRows(cache, self.grid)
        return NativeStep(kernel, cache.native_rows, self.slots.start, self.step_end, self.angles)


def read_by_sdpa(
    q_LNHK: torch.Tensor, k_LEK: torch.Tensor, v_LEK: torch.Tensor, added_L1NE: torch.Tensor
) -> torch.Tensor:
    """What each head of each thread reads in a step of decoding, (L, N, H, K)."""
    heads = q_LNHK.shape[2]
    read_LHNK = nn.functional.scaled_dot_product_attention(
        q_LNHK.transpose(1, 2),
        k_LEK[:, None].expand(-1, heads, -1, -1),
        v_LEK[:, None].expand(-1, heads, -1, -1),
        attn_mask=added_L1NE,
    )
    return read_LHNK.transpose(1, 2)


def read_by_products(
    q_LNHK: torch.Tensor, k_LEK: torch.Tensor, v_LEK: torch.Tensor, added_L1NE: torch.Tensor
) -> torch.Tensor:
    """The same for a GPU, whose kernels of attention give a few queries of many keys to a few of its processors: as
    products, all heads of all threads read the shared keys at once."""
    scores_LNHE = (q_LNHK.flatten(1, 2) @ k_LEK.transpose(1, 2)).view(*q_LNHK.shape[:3], -1)
    scores_LNHE = torch.add(added_L1NE.transpose(1, 2), scores_LNHE, alpha=q_LNHK.shape[-1] ** -0.5)
    return (scores_LNHE.softmax(dim=-1).flatten(1, 2) @ v_LEK).view_as(q_LNHK)


class LatticeAttention(nn.Module):
    """The side path of one layer; `graft` hangs it under the layer's `self_attn` as `lattice`.

    Args:
        width: D, the input width of the layer's `o_proj`.
        config: shapes and modes.
        index: which of the grafted layers this is (its place in the lattice cache).
    """

    def __init__(self, width: int, config: LatticeConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        self.enabled = True
        self.cut_gradients = False
        """Whether what is read counts as given: no gradient flows into the entries of other threads."""
        heads, dim = config.num_heads, config.head_dim
        self.split = [heads * dim, dim, dim, heads if config.gate == "head" else 0]
        self.down_proj = nn.Linear(width, config.low_dim, bias=False)
        self.norm = nn.RMSNorm(config.low_dim, eps=EPSILON)
        self.qkvg_proj = nn.Linear(config.low_dim, sum(self.split), bias=False)
        self.null_key = nn.Parameter(torch.empty(dim))
        self.up_proj = nn.Linear(heads * dim, width, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Small random projections, and an output that is exactly zero."""
        nn.init.normal_(self.down_proj.weight, std=self.down_proj.in_features**-0.5)
        nn.init.normal_(self.qkvg_proj.weight, std=self.qkvg_proj.in_features**-0.5)
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.null_key)
        nn.init.zeros_(self.up_proj.weight)

    def forward(self, x_RTD: torch.Tensor, layout: ThreadLayout) -> torch.Tensor:
        """What the threads' reading adds to the SDPA output; (R, T, D) to (R, T, D)."""
        if layout.one_step:
            read_RX = self._read_in_step(x_RTD.flatten(1), layout)
            return nn.functional.linear(read_RX, self.up_proj.weight)[:, None]
        rows, tokens, _ = x_RTD.shape
        heads, dim = self.config.num_heads, self.config.head_dim
        z_RTZ = self.norm(self.down_proj(x_RTD))
        q, k_RTK, v_RTK, g_RTH = self.qkvg_proj(z_RTZ).split(self.split, dim=-1)
        q_RTHK = q.unflatten(-1, (heads, dim))
        cos, sin = layout.angles_as(q.dtype)
        q_RTHK = rotate(q_RTHK, cos[:, :, None], sin[:, :, None])
        k_RTK = rotate(k_RTK, cos, sin)
        if self.cut_gradients:
            k_RTK, v_RTK = k_RTK.detach(), v_RTK.detach()

        k_LTNK = k_RTK[layout.rows_LN].transpose(1, 2)
        v_LTNK = v_RTK[layout.rows_LN].transpose(1, 2)
        if layout.cache is not None:
            k_LTNK, v_LTNK = layout.cache.update(self.index, layout.slots, k_LTNK, v_LTNK, layout.unwritten_LTN)
        # Every head of every thread reads the same keys: expanded, not copied.
        q_LHNTK = q_RTHK[layout.rows_LN].permute(0, 3, 1, 2, 4)
        null_L1K = self.null_key.to(k_LTNK.dtype).expand(len(k_LTNK), 1, dim)
        none_L1K = torch.zeros_like(null_L1K)
        first = layout.reading_blocks[0][0].start
        parts = [torch.zeros_like(q_LHNTK[..., :first, :])]
        for (columns, steps), added_L1QE in zip(layout.reading_blocks, layout.added_to_scores(q.dtype), strict=True):
            k_LEK = torch.cat((null_L1K, k_LTNK[:, steps].flatten(1, 2)), dim=1)
            v_LEK = torch.cat((none_L1K, v_LTNK[:, steps].flatten(1, 2)), dim=1)
            q_LHNBK = q_LHNTK[..., columns, :]
            read_LHQK = nn.functional.scaled_dot_product_attention(
                q_LHNBK.flatten(2, 3),
                k_LEK[:, None].expand(-1, heads, -1, -1),
                v_LEK[:, None].expand(-1, heads, -1, -1),
                attn_mask=added_L1QE,
            )
            parts.append(read_LHQK.unflatten(2, q_LHNBK.shape[2:4]))
        read_PTHK = torch.cat(parts, dim=3).permute(0, 2, 3, 1, 4).reshape(-1, tokens, heads, dim)  # P = L * N places
        read_RTHK = read_PTHK[layout.place_R]
        if self.config.gate == "head":
            read_RTHK = read_RTHK * torch.sigmoid(g_RTH)[..., None]
        added_RTD: torch.Tensor = self.up_proj(read_RTHK.reshape(rows, tokens, -1))
        return added_RTD

    def added(self, x_RD: torch.Tensor, layout: ThreadLayout) -> torch.Tensor:
        """The SDPA output and what the threads' reading adds to it, (R, D), of a pass of one token."""
        if not layout.one_step or self._forward_hooks:  # who watches, as `lace.engine.exchanges`, is told by a call
            added_R1D: torch.Tensor = self(x_RD[:, None], layout)
            return x_RD + added_R1D[:, 0]
        cache = layout.cache
        assert cache is not None
        if (native := layout.native_step) is not None and native.dtype == x_RD.dtype:
            return native.added(self.native_layer(layout), self.index, x_RD)
        read_RX = self._read_in_step(x_RD, layout)
        return torch.addmm(x_RD, read_RX, cache.weights[self.index].up_XD)

    def native_layer(self, layout: ThreadLayout) -> NativeLayer:
        """The layer as compiled code takes it, made once for a cache."""
        assert layout.cache is not None
        known: dict[int, NativeLayer] = layout.cache.native_layers
        if self.index not in known:
            known[self.index] = NativeLayer(self)
        return known[self.index]

    def _read_in_step(self, x_RD: torch.Tensor, layout: ThreadLayout) -> torch.Tensor:
        """What goes into `up_proj` in a step of decoding, (R, H * K), in a third of the operators."""
        cache, grid = layout.cache, layout.grid
        assert cache is not None
        if self.index not in cache.weights:
            cache.weights[self.index] = self.decoding_weights()
        weights = cache.weights[self.index]
        rows, heads, dim, low = len(x_RD), self.config.num_heads, self.config.head_dim, self.config.low_dim
        turning, keys = (heads + 1) * dim, heads * dim
        z_RY = torch.layer_norm(x_RD @ weights.down_DY, (2 * low,), weights.norm_Y, None, EPSILON)
        all_RX = z_RY[:, :low] @ weights.proj_ZX
        qkv_RX = all_RX[:, : turning + dim]
        cos_R1K, sin_R1K = layout.angles_as(qkv_RX.dtype)
        qk_RJK = all_RX[:, :turning].view(rows, -1, dim)  # J = H + 1, the queries and the key
        qk_RJK.mul_(cos_R1K).addcmul_(all_RX[:, turning + dim : 2 * turning + dim].view(rows, -1, dim), sin_R1K)

        lattices, threads = grid.rows_LN.shape
        qkv_LNX = qkv_RX.view(lattices, threads, -1) if grid.in_order else qkv_RX[grid.rows_LN]
        entries_L1NX = qkv_LNX[:, None, :, keys:]
        if not grid.in_order:
            entries_L1NX = entries_L1NX.masked_fill(layout.unwritten_LTN[..., None], 0)
        cache.write(self.index, layout.slots, entries_L1NX)
        k_LEK, v_LEK = layout.step_entries[self.index].flatten(1, 2).chunk(2, dim=-1)
        q_LNHK = qkv_LNX[..., :keys].view(lattices, threads, heads, dim)
        read = read_by_sdpa if q_LNHK.device.type == "cpu" else read_by_products
        read_RHK = read(q_LNHK, k_LEK, v_LEK, layout.step_added_to_scores).flatten(0, 1)
        if not grid.in_order:
            read_RHK = read_RHK[grid.place_R]
        if self.config.gate == "head":
            read_RHK = read_RHK * all_RX[:, 2 * turning + dim :, None].sigmoid()
        read_RX: torch.Tensor = read_RHK.reshape(rows, -1)
        return read_RX

    @torch.no_grad()
    def decoding_weights(self) -> DecodingWeights:
        """The weights as `_read_in_step` uses them.

        The down-projection is doubled to (W, -W): the mean of z and -z is zero, so that layer norm, one operator, is
        RMS norm, which is many. The second projection also yields q and k turned by a right angle, so that rotating
        them is a sum of two products.
        """
        q_k, v, g = self.qkvg_proj.weight.split([sum(self.split[:2]), *self.split[2:]])
        turned = half_turned(q_k.unflatten(0, (-1, self.config.head_dim)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        return DecodingWeights(
            torch.cat((self.down_proj.weight, -self.down_proj.weight)).T.contiguous(),
            self.norm.weight.repeat(2),
            torch.cat((q_k, v, turned, g)).T.contiguous(),
            self.up_proj.weight.T.contiguous(),
        )
