"""Muon's batched step against plain formulas and torch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mmlm.optim.muon import BatchedMuon, orthogonalized

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = [(6, 4), (4, 6), (6, 4), (5, 5)]


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def optimizer(parameters: list[nn.Parameter], kind: type = BatchedMuon, **more: str) -> torch.optim.Optimizer:
    return kind(parameters, lr=0.1, weight_decay=0.5, momentum=0.9, **more)


def go(parameters: list[nn.Parameter], muon: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for parameter, gradient in zip(parameters, gradients(step, parameters[0].dtype), strict=True):
            parameter.grad = gradient
        muon.step()


def test_the_update_of_the_formula_in_float64():
    parameters = matrices(torch.float64)
    expected = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(weight) for weight in expected]
    for step in range(3):
        for weight, momentum, gradient in zip(expected, momenta, gradients(step, torch.float64), strict=True):
            momentum += 0.1 * (gradient - momentum)
            u, s, v = torch.linalg.svd(0.1 * gradient + 0.9 * momentum, full_matrices=False)
            s = s / s.norm()
            for _ in range(5):  # singular values by themselves
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            weight -= 0.1 * 0.5 * weight
            weight -= 0.1 * 0.2 * max(weight.shape) ** 0.5 * (u * s) @ v
    go(parameters, optimizer(parameters), range(3))
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-9, atol=1e-10)


def test_as_torch_does_it_up_to_bfloat16(monkeypatch):
    monkeypatch.setattr("mmlm.optim.muon.is_faster_in_bfloat16", lambda device: True)
    ours, theirs = matrices(), matrices()
    go(ours, optimizer(ours), range(4))
    go(theirs, optimizer(theirs, torch.optim.Muon, adjust_lr_fn="match_rms_adamw"), range(4))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_state_is_that_of_torch():
    ours, theirs = matrices(), matrices()
    first, second = optimizer(ours), optimizer(theirs, torch.optim.Muon)
    go(theirs, second, range(2))
    first.load_state_dict(second.state_dict())
    assert first.state_dict()["state"].keys() == second.state_dict()["state"].keys()
    go(ours, first, range(2, 3))


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 5, 8), (1, 6, 6)])
def test_singular_values_come_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    given = u * torch.linspace(1, 0.1, s.shape[-1], dtype=torch.float64) @ v  # a small one would take more steps
    found = orthogonalized(given, COEFFICIENTS, 5, 1e-7)
    values = torch.linalg.svdvals(found)
    assert found.shape == shape
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_a_matrix_does_not_depend_on_those_beside_it():
    alone, among = matrices(torch.float64), matrices(torch.float64)
    go(among, optimizer(among), range(2))
    by_itself = optimizer(alone[:1])
    for step in range(2):
        alone[0].grad = gradients(step, torch.float64)[0]
        by_itself.step()
    torch.testing.assert_close(alone[0], among[0], rtol=1e-12, atol=1e-12)


def test_a_matrix_without_a_gradient_stays():
    parameters = matrices()
    parameters[0].grad = torch.ones(SHAPES[0])
    before = copy.deepcopy(parameters)
    muon = optimizer(parameters)
    muon.step()
    assert not torch.equal(parameters[0], before[0])
    assert all(torch.equal(one, other) for one, other in zip(parameters[1:], before[1:], strict=True))
    assert list(muon.state) == parameters[:1]


def test_a_step_left_out_on_the_device_changes_no_bit():
    """As on an accelerator, where the host does not know."""
    parameters = matrices()
    muon = optimizer(parameters)
    go(parameters, muon, range(2))
    same = [*parameters[:1], *parameters[2:3]]
    weights, momenta = ([t.detach().clone() for t in ts] for ts in (same, [muon._momentum(p) for p in same]))
    for value, skip in ((torch.nan, True), (1.0, False)):
        for parameter in same:
            parameter.grad = torch.full_like(parameter, value)
        with torch.no_grad():
            muon._step_together(same, muon.param_groups[0], torch.tensor(skip))
        kept = all(torch.equal(one, other) for one, other in zip(same, weights, strict=True))
        kept_momenta = all(torch.equal(muon._momentum(p), m) for p, m in zip(same, momenta, strict=True))
        assert (kept, kept_momenta) == (skip, skip)


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="closure"):
        optimizer(matrices()).step(lambda: 0.0)
