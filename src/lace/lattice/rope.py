"""Rotary encoding over two axes: some dimensions of a head turn with time, the others with the thread id.

Shape letters as everywhere in `lace.lattice`: R rows (threads of all lattices), T tokens, K dimensions of a head.
"""

from __future__ import annotations

import torch

from lace.lattice.config import LatticeConfig


def _frequencies(dims: int, theta: float, device: torch.device) -> torch.Tensor:
    """(dims / 2,) angular frequencies, as in RoFormer (arXiv 2104.09864), equation 15."""
    return theta ** (-torch.arange(0, dims, 2, dtype=torch.float32, device=device) / max(dims, 1))


def lattice_angles(
    config: LatticeConfig, steps_RT: torch.Tensor, thread_ids_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, both (R, T, K) in float32, for entries at `steps_RT` of threads `thread_ids_R`."""
    device = steps_RT.device
    time_RTh = steps_RT[..., None].float() * _frequencies(config.time_dims, config.time_theta, device)
    thread_Rh = thread_ids_R[:, None].float() * _frequencies(config.thread_dims, config.thread_theta, device)
    thread_RTh = thread_Rh[:, None].expand(-1, steps_RT.shape[1], -1)
    half_RTh = torch.cat((time_RTh, thread_RTh), dim=-1)
    angles_RTK = torch.cat((half_RTh, half_RTh), dim=-1)
    return angles_RTK.cos(), angles_RTK.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns each pair (x[i], x[i + K/2]) of the last dimension by its angle; cos and sin broadcast against x."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
