"""Muon for matrices, AdamW for the rest, as one optimizer: a small model from scratch learns in fewer steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, with updates of AdamW's size, for models of many small matrices: those of one shape are made
    orthogonal together, in a twentieth of the operators."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        orthogonal_PAB = orthogonalized(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
        size = group["lr"] * 0.2 * math.sqrt(max(parameters[0].shape))  # arXiv 2502.16982, equation 4
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(orthogonal_PAB.to(parameters[0].dtype)), alpha=-size)


def orthogonalized(
    matrices_PAB: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz iterations towards the nearest half-orthogonal matrices, in bfloat16, (P, A, B); what
    `torch.optim.Muon` does with one matrix."""
    a, b, c = coefficients
    tall = matrices_PAB.shape[1] > matrices_PAB.shape[2]
    x_PAB = (matrices_PAB.mT if tall else matrices_PAB).bfloat16()
    x_PAB = x_PAB / x_PAB.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_PAA = x_PAB @ x_PAB.mT
        x_PAB = torch.baddbmm(x_PAB, torch.baddbmm(gram_PAA, gram_PAA, gram_PAA, beta=b, alpha=c), x_PAB, beta=a)
    return x_PAB.mT if tall else x_PAB


class MuonAdamW(torch.optim.Optimizer):
    """Muon with updates of AdamW's size (arXiv 2502.16982, section 2.2): both take one learning rate.

    Args:
        model: its matrices go to Muon, but for embeddings and output head, which with all vectors go to AdamW.
        lr: of both.
        weight_decay: of both.
        betas: of AdamW.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        embeddings = {
            id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
        }
        head = getattr(model, "get_output_embeddings", lambda: None)()
        embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                (matrices if parameter.ndim == 2 and id(parameter) not in embeddings else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(BatchedMuon(matrices, lr=lr, weight_decay=weight_decay))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas))
        super().__init__([*matrices, *others], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The very groups of the parts, so that whoever sets a learning rate here sets theirs."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both parts; a closure is not supported."""
        assert closure is None
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
