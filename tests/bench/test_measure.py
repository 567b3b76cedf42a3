"""One measured model: its batch, what counts as its memory, and times in turn."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mmlm.bench.measure import StepTimes, Trainer, build_trainer, random_batch, take_turns

CPU = torch.device("cpu")


@pytest.fixture
def trainer(tiny_config):
    """``trainer(batch_size, *overrides)``: the tiny model after one step."""

    def make(batch_size: int = 4, *overrides: str) -> Trainer:
        built = build_trainer(tiny_config(*overrides), batch_size, 300, CPU)
        built.step()
        return built

    return make


def test_a_random_batch_is_a_batch():
    batch = random_batch(6, 16, 24, 300)
    assert batch.images.shape == (6, 3, 16, 16)
    assert (batch.tokens.shape, batch.lengths.tolist()) == ((6, 24), [24, 20, 16, 11, 7, 3])
    assert (batch.tokens >= 3).sum() == batch.lengths.sum() == batch.num_targets + 6
    assert batch.tokens.max() < 300
    again = random_batch(6, 16, 24, 300)
    assert torch.equal(batch.tokens, again.tokens)
    assert torch.equal(batch.images, again.images)
    assert random_batch(1, 16, 24, 300).lengths.tolist() == [24]


def test_a_step_trains_and_costs_are_those_of_the_model(trainer):
    built = trainer()
    before = {name: tensor.clone() for name, tensor in built.train_step.state_dict().items()}
    assert built.seconds() > 0
    changed = [name for name, tensor in built.train_step.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.split(".")[1] for name in changed} >= {"encoder", "bridge", "decoder"}
    assert all(parameter.grad is None for parameter in built.train_step.parameters())
    costs = built.costs()
    assert sum(costs.parameters.values()) == sum(p.numel() for p in built.model.parameters())
    assert costs.flops["decoder"] > 0


def test_what_is_frozen_costs_no_gradients_and_no_optimizer_state(trainer):
    built, whole = trainer(4, "freeze=lit"), trainer()
    before = {name: tensor.clone() for name, tensor in built.model.encoder.state_dict().items()}
    built.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.model.encoder.state_dict().items())
    # A gradient and two moments of AdamW for each number that does not train.
    saved = 4 * 3 * sum(parameter.numel() for parameter in built.model.encoder.parameters())
    assert built.memory() <= whole.memory() - saved
    assert trainer(4, "freeze=lora", "freeze.lora.parts=[decoder]").memory() < whole.memory()


@dataclass
class Result:
    """What a train step returns."""

    total: Tensor


class Square(nn.Module):
    """Sum of the squares of a projection of the pixels: autograd saves the pixels and the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * 16 * 16, 5, bias=False)

    def forward(self, batch) -> Result:
        return Result(self.projection(batch.images.flatten(1).float()).square().sum())


def differentiate(module: nn.Module, batches, step_key, diagnose, scale) -> Result:
    """The gradients of a ``Square``, in place of ``backward``, which takes a ``TrainStep``."""
    loss = module(batches[0])
    loss.total.backward()
    return Result(loss.total.detach())


def test_memory_is_the_sum_of_what_has_to_be_held(tiny_config):
    """float32 everywhere: parameters, gradients and two moments of 3840 weights, AdamW's counter, then activations."""
    module, batch = Square(), random_batch(4, 16, 24, 300)
    optimizer = torch.optim.AdamW(module.parameters())
    built = Trainer.of(tiny_config(), module, optimizer, batch, CPU, 0, differentiate)
    built.step()
    weights, pixels, projected = 5 * 3 * 16 * 16, 4 * 3 * 16 * 16, 4 * 5
    assert built.memory() == 4 * (4 * weights + 1 + pixels + projected)
    assert built.memory() == built.memory()
    assert module.projection.weight.grad is None


def test_memory_grows_with_the_batch_and_with_the_optimizer(trainer):
    four, eight = trainer(4).memory(), trainer(8).memory()
    parameters = sum(p.numel() for p in trainer(4).train_step.parameters())
    assert eight > four > 4 * 4 * parameters
    assert trainer(4, "optim=muon").memory() < four, "Muon keeps one moment of the matrices, AdamW two"


def test_models_take_turns(trainer, monkeypatch):
    turns = []
    monkeypatch.setattr(Trainer, "seconds", lambda self: turns.append(self) or float(len(turns)))
    first, second = trainer(), trainer()
    times = take_turns(first, second, 3)
    assert [turn is first for turn in turns] == [True, False] * 3
    assert (times.reference, times.cell) == ((1, 3, 5), (2, 4, 6))


def test_the_ratio_is_of_neighbours():
    times = StepTimes(reference=(1.0, 10.0, 1.0), cell=(2.0, 20.0, 3.0))
    assert (times.ratio, times.seconds) == (2.0, 3.0)
