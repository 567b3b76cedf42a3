"""The rules of an optimizer, tried on the tiny model, and of a schedule of its learning rate."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mmlm.check.batch import whole_batch
from mmlm.check.exactness import make_step, step_key
from mmlm.check.report import Check, expect
from mmlm.experiment.config import Config
from mmlm.optim.optimizers import Optimizer, OptimizerPart
from mmlm.optim.schedules import Schedule
from mmlm.training.gradients import backward
from mmlm.training.train_step import TrainStep

STEPS = 2
"""Optimizer steps that are tried before the state is saved."""
RUN_LENGTHS = (1, 2, 50, 1000)
"""Numbers of steps of a run that a schedule is tried on."""


@dataclass(frozen=True)
class OptimizerUnderTest:
    """An optimizer, and the config of the model that it moves."""

    make: Callable[[], OptimizerPart]
    config: Config

    def started(self) -> tuple[TrainStep, Optimizer]:
        """The tiny model in float32, and a new optimizer for it."""
        step = make_step(self.config).float()
        return step, self.make()(step, step.learning_rate_scales())

    def go_on(self, step: TrainStep, optimizer: Optimizer, first: int, last: int) -> None:
        """Optimizer steps ``first`` to ``last`` - 1, each on the same batch."""
        for number in range(first, last):
            optimizer.zero_grad()
            backward(step, [whole_batch(self.config.data.image_size)], replace(step_key(self.config), seed=number))
            optimizer.step()

    @cached_property
    def without_a_stop(self) -> dict[str, Tensor]:
        """The parameters after one step more than ``STEPS``."""
        step, optimizer = self.started()
        self.go_on(step, optimizer, 0, STEPS + 1)
        return _parameters(step)


def _parameters(step: TrainStep) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in step.named_parameters()}


def groups(subject: OptimizerUnderTest) -> None:
    """See ``CHECKS``."""
    step, optimizer = subject.started()
    listed = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    expect(len(listed) == len(set(listed)), "a parameter is in two groups", "put each parameter into one group")
    for name, parameter in step.named_parameters():
        fix = "put every parameter that trains into a group; mmlm.optim.optimizers.parameter_groups does it"
        expect(not parameter.requires_grad or id(parameter) in listed, f"{name} is in no group", fix)
    for group in optimizer.param_groups:
        fix = "give every group its peak learning rate as peak_lr: schedules multiply it"
        expect("peak_lr" in group and "lr" in group, f"a group has the keys {', '.join(group)}", fix)


def moves(subject: OptimizerUnderTest) -> None:
    """See ``CHECKS``."""
    step, optimizer = subject.started()
    before = _parameters(step)
    subject.go_on(step, optimizer, 0, 1)
    for name, parameter in step.named_parameters():
        finite = bool(parameter.isfinite().all())
        expect(finite, f"{name} is not finite after a step", "guard divisions (eps)")
        if parameter.grad is not None and parameter.grad.any():
            moved = not torch.equal(parameter, before[name])
            expect(moved, f"{name} has a gradient and has not moved", "update the parameters of all groups")


def repeatable(subject: OptimizerUnderTest) -> None:
    """See ``CHECKS``."""
    step, optimizer = subject.started()
    subject.go_on(step, optimizer, 0, STEPS + 1)
    for name, value in _parameters(step).items():
        same = torch.equal(value, subject.without_a_stop[name])
        expect(same, f"{name} is another one the second time", "draw nothing, and keep no state outside of the object")


def state_there_and_back(subject: OptimizerUnderTest) -> None:
    """See ``CHECKS``."""
    step, optimizer = subject.started()
    subject.go_on(step, optimizer, 0, STEPS)
    saved, state = _parameters(step), copy.deepcopy(optimizer.state_dict())
    other, resumed = subject.started()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(saved[name])
    resumed.load_state_dict(state)
    subject.go_on(other, resumed, STEPS, STEPS + 1)
    for name, value in _parameters(other).items():
        same = torch.equal(value, subject.without_a_stop[name])
        fix = "keep all that a step depends on in `state` and `param_groups`"
        expect(same, f"after a stop {name} is another one", fix)


CHECKS: tuple[Check[OptimizerUnderTest], ...] = (
    Check("every parameter that trains is in one group, which has its peak_lr", groups),
    Check("a step moves every parameter that has a gradient, and leaves it finite", moves),
    Check("the same steps give the same weights", repeatable),
    Check("with its state in a new optimizer, training goes on as if it had not stopped", state_there_and_back),
)
"""The rules of an optimizer."""


def factors(schedule: Schedule) -> None:
    """See ``SCHEDULE_CHECKS``."""
    for length in RUN_LENGTHS:
        for step in range(length):
            factor = schedule(step, length)
            told = f"the factor of step {step} of {length} is {factor!r}"
            right = isinstance(factor, float | int) and math.isfinite(factor) and 0 <= factor <= 1
            expect(right, told, "return a share of the peak learning rate in [0, 1]")
            expect(schedule(step, length) == factor, f"{told}, and another one the second time", "keep no state")


def trains(schedule: Schedule) -> None:
    """See ``SCHEDULE_CHECKS``."""
    for length in RUN_LENGTHS:
        expect(
            schedule(0, length) > 0, f"the factor of step 0 of {length} is 0", "begin above 0: that step trains nothing"
        )


SCHEDULE_CHECKS: tuple[Check[Schedule], ...] = (
    Check("the factor is in [0, 1], and depends on the step and the number of steps alone", factors),
    Check("the first step trains", trains),
)
"""The rules of a schedule."""
