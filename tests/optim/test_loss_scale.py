"""The loss scale of float16, and gradients under it."""

import pytest
import torch
from torch import nn

from mmlm.optim.loss_scale import FIRST_SCALE, GROWTH_STEPS, LossScale

YES, NO = torch.tensor(True), torch.tensor(False)


def test_it_halves_on_overflow_and_doubles_after_many_finite_steps():
    scale = LossScale.start(torch.device("cpu"))
    scale.update(NO, YES)
    scale.update(YES, NO)
    assert (scale.scale.item(), scale.steps.item()) == (FIRST_SCALE / 2, 0)
    for _ in range(GROWTH_STEPS - 1):
        scale.update(NO, YES)
    scale.update(NO, NO)  # not finite, and not by the scale: it neither lowers nor raises it
    assert (scale.scale.item(), scale.steps.item()) == (FIRST_SCALE / 2, GROWTH_STEPS - 1)
    scale.update(NO, YES)
    assert (scale.scale.item(), scale.steps.item()) == (FIRST_SCALE, 0)


def test_it_is_never_below_one():
    scale = LossScale(torch.tensor(1.0), torch.tensor(0.0))
    scale.update(YES, NO)
    assert scale.scale.item() == 1


def test_it_comes_back_from_its_state():
    scale = LossScale(torch.tensor(8.0), torch.tensor(3.0))
    again = LossScale.restored(scale.state_dict(), torch.device("cpu"))
    assert (again.scale.item(), again.steps.item()) == (8.0, 3.0)
    assert again.scale.dtype == torch.float32


def test_scaling_and_unscaling_changes_no_bit():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(5, 3), torch.randn(4, 5)
    plain = torch.autograd.grad(layer(inputs).square().mean(), list(layer.parameters()))
    scale = LossScale.start(torch.device("cpu"))
    (layer(inputs).square().mean() * scale.scale).backward()
    assert not torch.equal(layer.weight.grad, plain[0])
    scale.unscale([*layer.parameters(), nn.Parameter(torch.zeros(1))])
    assert torch.equal(layer.weight.grad, plain[0])
    assert torch.equal(layer.bias.grad, plain[1])


def test_without_it_small_gradients_are_lost():
    weight = nn.Parameter(torch.ones(1, dtype=torch.float16))
    (weight * 1e-7).float().sum().mul(1e-3).backward()
    assert weight.grad.item() == 0
    weight.grad = None
    scale = LossScale.start(torch.device("cpu"))
    ((weight * 1e-7).float().sum().mul(1e-3) * scale.scale).backward()
    assert weight.grad.item() > 0


@pytest.mark.parametrize("growth", [True, False])
def test_nothing_of_it_waits_for_the_device(growth):
    """On the meta device there is no number to wait for."""
    device = torch.device("meta")
    scale = LossScale.start(device)
    scale.update(torch.tensor(growth, device=device), torch.tensor(not growth, device=device))
