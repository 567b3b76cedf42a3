"""An optimizer's state under names: what comes back is what was there, and what does not fit is left behind."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mmlm.checkpoints.nested import check_storable
from mmlm.optim.optimizers import AdamW, Muon, Optimizer, OptimizerPair
from mmlm.optim.state import load_optimizer_state_by_name, optimizer_state_by_name


def make(seed: int = 0) -> nn.ModuleDict:
    """A tied head, matrices that Muon takes, and a layer that gets no gradient."""
    torch.manual_seed(seed)
    parts = {
        "embedding": nn.Embedding(5, 4),
        "hidden": nn.Linear(4, 4),
        "head": nn.Linear(4, 5),
        "unused": nn.Linear(2, 2),
    }
    module = nn.ModuleDict(parts)
    module["head"].weight = module["embedding"].weight
    return module


def train(module: nn.ModuleDict, optimizer: Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        module["head"](module["hidden"](module["embedding"](torch.tensor([1, 2])))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("part", [AdamW(lr=0.01), Muon(lr=0.01)], ids=["adamw", "muon"])
def test_a_run_goes_on_as_if_it_had_not_stopped(part):
    module = make()
    optimizer = part(module)
    train(module, optimizer)
    saved = copy.deepcopy(optimizer_state_by_name(module, optimizer))
    check_storable(saved, "state")
    assert "unused.weight" not in saved["state"], "it has no state and is given none"
    assert {"embedding.weight", "hidden.weight", "head.bias"} <= saved["state"].keys()
    again = make(seed=1)
    again.load_state_dict(module.state_dict())
    resumed = part(again)
    assert load_optimizer_state_by_name(again, resumed, saved) == []
    for one, its_optimizer in ((module, optimizer), (again, resumed)):
        train(one, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(weights(module), weights(again), strict=True))


def test_settings_are_taken_over_or_kept():
    module = make()
    first = AdamW(lr=0.01, weight_decay=0.1)(module)
    train(module, first)
    saved = optimizer_state_by_name(module, first)
    for settings, lr, decay in ((True, 0.01, 0.1), (False, 0.5, 0.2)):
        other = AdamW(lr=0.5, weight_decay=0.2)(module)
        load_optimizer_state_by_name(module, other, saved, settings)
        assert [(g["lr"], g["peak_lr"], g["weight_decay"]) for g in other.param_groups] == [
            (lr, lr, decay),
            (lr, lr, 0.0),
        ]
        assert other.state[module["hidden"].weight]["step"] == 2


def test_state_of_another_kind_or_of_what_no_longer_trains_is_left_behind():
    module = make()
    adamw = AdamW(lr=0.01)(module)
    train(module, adamw)
    saved = optimizer_state_by_name(module, adamw)
    muon = Muon(lr=0.01)(module)
    assert isinstance(muon, OptimizerPair)
    assert load_optimizer_state_by_name(module, muon, saved) == ["hidden.weight"]
    train(module, muon)
    module["hidden"].bias.requires_grad_(False)
    fewer = AdamW(lr=0.01)(module)
    assert load_optimizer_state_by_name(module, fewer, saved) == ["hidden.bias"]
    train(module, fewer)


def test_wrappers_do_not_show_in_names():
    module = make()
    plain = AdamW(lr=0.01)(module)
    train(module, plain)
    saved = optimizer_state_by_name(module, plain)
    module["hidden"] = checkpoint_wrapper(module["hidden"])
    wrapped = AdamW(lr=0.01)(module)
    assert load_optimizer_state_by_name(module, wrapped, saved) == []
    assert (
        optimizer_state_by_name(module, wrapped)["state"].keys() == saved["state"].keys() <= module.state_dict().keys()
    )
