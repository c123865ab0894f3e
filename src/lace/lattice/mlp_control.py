"""P-Match, a control: a side path in the lattice's place and of its size that exchanges nothing.

Whatever a lattice gains over this one, it gains by what threads read of each other, and not by new parameters:

    z = norm(W_down x)                       down to the lattice's low dimension
    x + W_up silu(W_hidden z)                W_up starts at zero

It works on the tokens that a lattice works on: those the thread has written, not prompt and padding.

Shape letters: R rows (all threads of all lattices), T tokens of the pass, D width of the SDPA output.
"""

from __future__ import annotations

import torch
from torch import nn

from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.config import LatticeConfig


class MLPControl(nn.Module):
    """The side path of one layer where `LatticeConfig.kind` is `mlp`; takes the place of a `LatticeAttention`.

    Its hidden width is the one whose parameters come closest to those of a `LatticeAttention` of the same config: a
    hidden unit more or less is 1 part in `low_dim + num_heads * head_dim`, about, and rounding costs half of that.

    Args:
        width: D, the input width of the layer's `o_proj`.
        config: the lattice's, for the low dimension and for what to match.
        index: which of the grafted layers this is.
    """

    def __init__(self, width: int, config: LatticeConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        self.enabled = True
        self.cut_gradients = False
        """Switched like a lattice's; there is nothing to cut, since nothing is read."""
        with torch.device("meta"):
            target = sum(p.numel() for p in LatticeAttention(width, config, index).parameters())
        low = config.low_dim
        hidden = max(1, round((target - width * low - low) / (width + low)))
        self.down_proj = nn.Linear(width, low, bias=False)
        self.norm = nn.RMSNorm(low, eps=1e-6)
        self.hidden_proj = nn.Linear(low, hidden, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Small random projections, and an output that is exactly zero, as in a lattice."""
        nn.init.normal_(self.down_proj.weight, std=self.down_proj.in_features**-0.5)
        nn.init.normal_(self.hidden_proj.weight, std=self.hidden_proj.in_features**-0.5)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.up_proj.weight)

    def forward(self, x_RTD: torch.Tensor, layout: ThreadLayout) -> torch.Tensor:
        """What is added to the SDPA output; (R, T, D) to (R, T, D)."""
        hidden = nn.functional.silu(self.hidden_proj(self.norm(self.down_proj(x_RTD))))
        added_RTD: torch.Tensor = self.up_proj(hidden)
        return added_RTD.masked_fill(~layout.written_RT[..., None], 0.0)

    def added(self, x_RD: torch.Tensor, layout: ThreadLayout) -> torch.Tensor:
        """The SDPA output and what is added to it, (R, D), of a pass of one token."""
        return x_RD + self.forward(x_RD[:, None], layout)[:, 0]
