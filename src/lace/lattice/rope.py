"""Rotary encoding over two axes: some dimensions of a head turn with time, the others with the thread id.

Shape letters as everywhere in `lace.lattice`: R rows (threads of all lattices), T tokens, K dimensions of a head.
"""

from __future__ import annotations

import torch

from lace.lattice.config import LatticeConfig


def _frequencies(dims: int, theta: float, device: torch.device) -> torch.Tensor:
    """(dims / 2,) angular frequencies, as in RoFormer (arXiv 2104.09864), equation 15."""
    return theta ** (-torch.arange(0, dims, 2, dtype=torch.float32, device=device) / max(dims, 1))


def axis_frequencies(config: LatticeConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles by which each dimension turns per step and per thread id, both (K,), each 0 where the other turns."""
    time_h = _frequencies(config.time_dims, config.time_theta, device)
    thread_h = _frequencies(config.thread_dims, config.thread_theta, device)
    still_time_h, still_thread_h = torch.zeros_like(time_h), torch.zeros_like(thread_h)
    return torch.cat((time_h, still_thread_h)).repeat(2), torch.cat((still_time_h, thread_h)).repeat(2)


def turned_angles(
    steps_RT: torch.Tensor, time_K: torch.Tensor, thread_R1K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, both (R, T, K) in float32, of entries at `steps_RT`.

    Args:
        time_K: see `axis_frequencies`.
        thread_R1K: angle of each row by its thread.
    """
    angles_RTK = torch.addcmul(thread_R1K, steps_RT[..., None].float(), time_K)
    return angles_RTK.cos(), angles_RTK.sin()


def lattice_angles(
    config: LatticeConfig, steps_RT: torch.Tensor, thread_ids_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, both (R, T, K) in float32, for entries at `steps_RT` of threads `thread_ids_R`."""
    time_K, thread_K = axis_frequencies(config, steps_RT.device)
    return turned_angles(steps_RT, time_K, (thread_ids_R[:, None].float() * thread_K)[:, None])


def half_turned(x: torch.Tensor) -> torch.Tensor:
    """Each pair (x[i], x[i + K/2]) of the last dimension turned by a right angle."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns each pair (x[i], x[i + K/2]) of the last dimension by its angle; cos and sin broadcast against x."""
    return x * cos + half_turned(x) * sin
