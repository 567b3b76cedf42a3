"""Optimizer steps that are left out: bit for bit as if they had never been asked for."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mmlm.optim.gated import BuffersBefore, step_unless
from mmlm.optim.optimizers import AdamW, Muon, Optimizer

YES, NO = torch.tensor(True), torch.tensor(False)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def sgd(module: nn.Module) -> Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def plain_adam(module: nn.Module) -> Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.1, fused=False)


OPTIMIZERS = pytest.mark.parametrize("make", [AdamW(lr=0.1), Muon(lr=0.1), sgd, plain_adam])


def differentiate(module: nn.Module, step: int, factor: float = 1.0) -> None:
    inputs = torch.randn(2, 4, generator=torch.Generator().manual_seed(step))
    (module(inputs).square().sum() * factor).backward()


def tensors(module: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    found, ahead = list(module.state_dict().values()), [optimizer.state_dict()]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, dict):
            ahead += one.values()
        elif isinstance(one, list):
            ahead += one
    return found


@OPTIMIZERS
@pytest.mark.parametrize("left_out", [0, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_left_out_changes_no_bit_of_what_follows(make, left_out, value):
    never, skipping = model(), model()
    first, second = make(never), make(skipping)
    for step in range(5):
        if step == left_out:
            differentiate(skipping, 99, value)
            before = copy.deepcopy(skipping.state_dict())
            step_unless(second, YES)
            second.zero_grad()
            assert all(torch.equal(before[name], tensor) for name, tensor in skipping.state_dict().items())
        for module, optimizer in ((never, first), (skipping, second)):
            differentiate(module, step)
            step_unless(optimizer, NO)
            optimizer.zero_grad()
    pairs = zip(tensors(never, first), tensors(skipping, second), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@OPTIMIZERS
def test_a_step_that_is_not_left_out_is_the_optimizers_own(make):
    plain, gated = model(), model()
    first, second = make(plain), make(gated)
    for step in range(3):
        differentiate(plain, step)
        first.step()
        first.zero_grad()
        differentiate(gated, step)
        step_unless(second, NO)
        second.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(tensors(plain, first), tensors(gated, second), strict=True))


@pytest.mark.parametrize("skip", [YES, NO])
def test_buffers_are_put_back_if_the_step_is_left_out(skip):
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(4, 3))
    before = copy.deepcopy(norm.state_dict())
    buffers = BuffersBefore(norm)
    norm(torch.full((4, 3), math.nan))
    buffers.put_back(skip)
    same = [torch.equal(before[name], tensor) for name, tensor in norm.named_buffers()]
    assert same == [bool(skip)] * 3
