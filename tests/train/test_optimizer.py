"""Two optimizers as one: who takes which parameters, learning rates, and going on from a state."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lace.train.optimizer import BatchedMuon, MuonAdamW


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 7, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.norm(self.embed(ids)))).square().mean()


def made(model: nn.Module) -> MuonAdamW:
    return MuonAdamW(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for n in range(count):
        optimizer.zero_grad()
        model(torch.tensor([n % 7, 3])).backward()
        optimizer.step()


def test_only_inner_matrices_go_to_muon_and_frozen_parameters_to_none() -> None:
    torch.manual_seed(0)
    model = Small()
    model.norm.bias.requires_grad_(False)
    muon, adamw = made(model).parts
    assert isinstance(muon, torch.optim.Muon)
    assert [p.data_ptr() for p in muon.param_groups[0]["params"]] == [model.inner.weight.data_ptr()]
    others = {p.data_ptr() for p in adamw.param_groups[0]["params"]}
    wanted = (model.embed.weight, model.norm.weight, model.inner.bias, model.head.weight)
    assert others == {p.data_ptr() for p in wanted}


def test_a_step_is_that_of_both_and_rates_are_set_through_the_groups() -> None:
    torch.manual_seed(0)
    model = Small()
    twin = copy.deepcopy(model)
    optimizer = made(model)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    muon = torch.optim.Muon([twin.inner.weight], lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in twin.parameters() if p is not twin.inner.weight]
    adamw = torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.98))
    steps(model, optimizer, 3)
    for n in range(3):
        twin.zero_grad()
        twin(torch.tensor([n % 7, 3])).backward()
        muon.step()
        adamw.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_reloaded_state_goes_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(0)
    model = Small()
    optimizer = made(model)
    steps(model, optimizer, 2)
    twin = copy.deepcopy(model)
    other = made(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (*optimizer.param_groups, *other.param_groups):
        group["lr"] = 2e-3
    steps(model, optimizer, 2)
    steps(twin, other, 2)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_matrices_made_orthogonal_together_are_those_made_one_by_one() -> None:
    torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 24), (24, 8), (8, 8)]
    batched = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    single = [nn.Parameter(parameter.detach().clone()) for parameter in batched]
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    ours, theirs = (
        BatchedMuon(batched, **settings),
        torch.optim.Muon(single, **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for n in range(4):
        for a, b in zip(batched, single, strict=True):
            a.grad = None if n == 0 and a.shape == (8, 24) else torch.randn_like(a)
            b.grad = a.grad
        ours.step()
        theirs.step()
    for a, b in zip(batched, single, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # iterations in bfloat16, in another order of sums perhaps
