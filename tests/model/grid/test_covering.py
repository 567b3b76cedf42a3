"""Cells of the grid that together hold every pair of options take three real steps.

Every tensor that trains has had a finite gradient that is not 0, every frozen one none, and its bytes are the same.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mmlm.core.batch import Batch
from mmlm.core.views import StepKey
from mmlm.experiment.build import build_freeze, build_model
from mmlm.experiment.config import Config
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.training.gradients import backward
from mmlm.training.train_step import TrainStep
from tests.model.grid.cells import (
    CELLS,
    VOCABULARY,
    Cell,
    config_of,
    options,
    pairwise,
    refusal,
)

STEPS = 3


@functools.cache
def covering() -> tuple[Cell, ...]:
    """Cells that are built and can learn, with every pair of options that can stand together in one of them."""
    return tuple(pairwise([cell for cell in CELLS if refusal(cell) is None and not cell.one_memory_token]))


def test_the_covering_set_covers():
    chosen = covering()
    assert {cell.encoder for cell in chosen} == set(options("encoder"))
    assert {(cell.bridge, cell.decoder) for cell in chosen} == {
        (cell.bridge, cell.decoder) for cell in CELLS if refusal(cell) is None
    }


@pytest.mark.parametrize("decoder", options("decoder"))
def test_a_covering_set_of_cells_trains(make_batch, decoder):
    for cell in covering():
        if cell.decoder == decoder:
            train_three_steps(cell, config_of(cell), make_batch)


def train_three_steps(cell: Cell, config: Config, make_batch: Callable[..., Batch]) -> None:
    """Plain SGD on the joint loss (contrastive only for two towers); asserts what the docstring of this file says."""
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY)
    plan = build_freeze(config)
    plan.add_adapters(model)
    weights = {"contrastive": 1.0} if cell.two_towers else {"contrastive": 1.0, "captioning": 1.0}
    kinds = {"contrastive": InfoNCE(), "captioning": Captioning()}
    train_step = TrainStep(model, WeightedSum({name: kinds[name] for name in weights}, weights), plan)
    train_step.train()
    frozen = plan.frozen_parameters(model, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lengths, index = (5, 3, 7, 4, 6, 4), (0, 1, 1, 2, 0, 3)
    moved: set[str] = set()
    for step in range(STEPS):
        batch = make_batch(lengths, index, 4, 8, VOCABULARY, config.data.image_size, seed=step)
        train_step.zero_grad(set_to_none=True)
        backward(train_step, (batch,), StepKey())
        with torch.no_grad():
            for name, parameter in train_step.named_parameters():
                if parameter.grad is None:
                    continue
                assert parameter.requires_grad, f"{cell}: {name} is frozen and has a gradient"
                assert parameter.grad.isfinite().all(), f"{cell}: {name} has a gradient that is not finite"
                if parameter.grad.count_nonzero():
                    moved.add(name)
                parameter -= 0.05 * parameter.grad
    trains = {name for name, parameter in train_step.named_parameters() if parameter.requires_grad}
    assert trains == moved, f"{cell}: no gradient for {sorted(trains - moved)}"
    after = model.state_dict()
    for name, parameter in model.named_parameters():
        if parameter in frozen:
            assert torch.equal(after[name], before[name]), f"{cell}: {name} is frozen and has changed"
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            assert torch.equal(after[f"{name}.running_mean"], before[f"{name}.running_mean"]), f"{cell}: {name}"
