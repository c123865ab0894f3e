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

import torch
from torch import nn

from lace.lattice.cache import LatticeCache
from lace.lattice.config import LatticeConfig
from lace.lattice.rope import lattice_angles, rotate
from lace.lattice.visibility import visible


@dataclass(frozen=True)
class ThreadLayout:
    """Where the rows of one forward pass stand in their lattices; made once a pass, shared by all grafted layers."""

    rows_LN: torch.Tensor
    """Row of each thread, 0 where there is none (such entries are never visible)."""
    place_R: torch.Tensor
    """Index of each row in the flattened (L, N) grid."""
    cos_RTK: torch.Tensor
    sin_RTK: torch.Tensor
    seen_LQE: torch.Tensor
    """Which of the E = 1 + S * N entries (null, then time-major) each of the Q = N * T queries (thread-major) reads."""
    written_RT: torch.Tensor
    """Which tokens are in the lattice: what threads have written, not prompt and padding."""
    cache: LatticeCache | None
    slots: slice
    """Slots of the cache that this pass writes."""
    _added: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False)

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
            cache: earlier entries; the pass then covers the next T steps of all its lattices in lock-step.
        """
        present_LN = lattice_rows >= 0
        rows_LN = lattice_rows.clamp(min=0)
        # The inverse of lattice_rows; absent threads go to a spare last place, so that no device sync is needed.
        count = thread_ids.shape[0]
        places = torch.arange(rows_LN.numel(), device=rows_LN.device)
        target = torch.where(present_LN, lattice_rows, count).flatten()
        place_R = places.new_zeros(count + 1).scatter_(0, target, places)[:count]
        steps_LNT = torch.where(present_LN[..., None], steps[rows_LN], -1)
        slots = slice(0, steps.shape[1])
        key_steps_LSN = steps_LNT.transpose(1, 2)
        if cache is not None:
            slots, key_steps_LSN = cache.advance(steps_LNT)
        threads = torch.arange(rows_LN.shape[1], device=rows_LN.device)
        same_NN = threads[:, None] == threads
        seen_LNTSN = visible(
            steps_LNT[:, :, :, None, None],
            key_steps_LSN[:, None, None],
            same_NN[None, :, None, None],
            config.visibility,
            config.read_self,
        )
        cos, sin = lattice_angles(config, steps, thread_ids)
        seen_LQE = nn.functional.pad(seen_LNTSN.flatten(3).flatten(1, 2), (1, 0), value=True)
        return cls(rows_LN, place_R, cos, sin, seen_LQE, steps >= 0, cache, slots)

    def added_to_scores(self, dtype: torch.dtype) -> torch.Tensor:
        """(L, 1, Q, E) 0 where an entry is seen, else -inf. SDPA would make it of the booleans in every layer anew."""
        if dtype not in self._added:
            unseen_L1QE = ~self.seen_LQE[:, None]
            zeros_L1QE = torch.zeros(unseen_L1QE.shape, dtype=dtype, device=unseen_L1QE.device)
            self._added[dtype] = zeros_L1QE.masked_fill_(unseen_L1QE, -torch.inf)
        return self._added[dtype]


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
        self.norm = nn.RMSNorm(config.low_dim, eps=1e-6)
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
        rows, tokens, _ = x_RTD.shape
        heads, dim = self.config.num_heads, self.config.head_dim
        z_RTZ = self.norm(self.down_proj(x_RTD))
        q, k_RTK, v_RTK, g_RTH = self.qkvg_proj(z_RTZ).split(self.split, dim=-1)
        q_RTHK = q.unflatten(-1, (heads, dim))
        cos, sin = layout.cos_RTK.to(q.dtype), layout.sin_RTK.to(q.dtype)
        q_RTHK = rotate(q_RTHK, cos[:, :, None], sin[:, :, None])
        k_RTK = rotate(k_RTK, cos, sin)
        if self.cut_gradients:
            k_RTK, v_RTK = k_RTK.detach(), v_RTK.detach()

        k_LTNK = k_RTK[layout.rows_LN].transpose(1, 2)
        v_LTNK = v_RTK[layout.rows_LN].transpose(1, 2)
        if layout.cache is not None:
            k_LTNK, v_LTNK = layout.cache.update(self.index, layout.slots, k_LTNK, v_LTNK)
        k_LEK, v_LEK = k_LTNK.flatten(1, 2), v_LTNK.flatten(1, 2)
        null_L1K = self.null_key.to(k_LEK.dtype).expand(len(k_LEK), 1, dim)
        k_LEK = torch.cat((null_L1K, k_LEK), dim=1)
        v_LEK = torch.cat((torch.zeros_like(v_LEK[:, :1]), v_LEK), dim=1)

        # Every head of every thread reads the same keys: expanded, not copied.
        q_LHQK = q_RTHK[layout.rows_LN].flatten(1, 2).transpose(1, 2)
        read_LHQK = nn.functional.scaled_dot_product_attention(
            q_LHQK,
            k_LEK[:, None].expand(-1, heads, -1, -1),
            v_LEK[:, None].expand(-1, heads, -1, -1),
            attn_mask=layout.added_to_scores(q_LHQK.dtype),
        )
        read_PTHK = read_LHQK.transpose(1, 2).reshape(-1, tokens, heads, dim)  # P = L * N places of the grid
        read_RTHK = read_PTHK[layout.place_R]
        if self.config.gate == "head":
            read_RTHK = read_RTHK * torch.sigmoid(g_RTH)[..., None]
        added_RTD: torch.Tensor = self.up_proj(read_RTHK.reshape(rows, tokens, -1))
        return added_RTD
