"""Steps whose loss or gradient is not finite: left out on the device, told one step late, and at most so many."""

import math

import pytest
import torch

from mmlm.core.precision import Precision
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.training.messages import NonFiniteLoss
from mmlm.training.replicated import Replicated
from mmlm.training.train_state import TrainState
from tests.toy_run import Run, expected_weights, make_run, restore, states_equal, timeless

LOG_EVERY = pytest.mark.parametrize("log_every", [1, 4, 100])


@LOG_EVERY
def test_the_update_is_left_out_and_nothing_else(log_every):
    """Weights, momentum and buffers are those of a run that never met the batch; its number and its data are used."""
    run = make_run(nan_at=(2,), ema=0.9).go(steps=7, log_every=log_every)
    assert run.toy.weight.item() == pytest.approx(expected_weights(6)[-1], rel=1e-6)
    assert run.toy.seen.isfinite()
    assert all(tensor.isfinite().all() for tensor in run.state.ema.tensors.values())
    assert run.toy.numbers == [0, 1, 2, 3, 4, 5, 6]
    assert (run.state.step, run.state.loader.position, run.state.skipped_steps) == (7, 14, 1)
    assert (
        "step 2: the loss is not finite (error nan, gradient norm nan) on the batch image4, image5; its update is left "
        "out (1 so far, at most 3)\n"
    ) in run.console.getvalue()


def test_means_are_those_of_the_other_steps_and_the_row_counts():
    rows = make_run(nan_at=(1,)).go(steps=4, log_every=4).recorder.training_rows()
    losses = [(weight - 1) ** 2 for weight in [3.0, *expected_weights(2)]]
    (_, values), *_ = rows
    assert values["train/loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert values["train/skipped_steps"] == 1
    assert not any(map(math.isnan, values.values()))
    assert "train/skipped_steps" not in make_run().go(steps=1).recorder.training_rows()[0][1]


def test_a_row_of_nothing_but_such_steps_is_told_all_the_same():
    (_, _, first), *_ = make_run(nan_at=(0,)).go(steps=2).recorder.rows
    assert "train/loss" not in first
    assert first["train/skipped_steps"] == 1


@LOG_EVERY
def test_one_too_many_ends_the_run_with_its_ids_and_a_state_to_go_on_from(log_every):
    settings = {"steps": 8, "log_every": log_every}
    straight = make_run(nan_at=(1, 3), noise=0.1).go(**settings)
    run = make_run(nan_at=(1, 3), noise=0.1)
    with pytest.raises(NonFiniteLoss) as stopped:
        run.go(max_skipped_steps=1, **settings)
    assert str(stopped.value) == (
        "step 3: the loss is not finite (error nan, gradient norm nan) on the batch image6, image7; that is update 2 "
        "to be left out, and train.max_skipped_steps is 1; the state without it is saved; lower optim.lr or look at "
        "these examples"
    )
    (step,) = run.recorder.states
    assert step in (4, 5)
    assert run.recorder.states[step]["skipped_steps"] == 2
    assert run.toy.weight.grad is None
    resumed = make_run(nan_at=(1, 3), noise=0.1)
    restore(resumed.state, run.recorder.states[step])
    resumed.go(**settings)
    assert states_equal(resumed.recorder.states[8], straight.recorder.states[8])
    assert timeless(run.recorder.rows + resumed.recorder.rows) == timeless(straight.recorder.rows)


def test_an_infinite_gradient_counts_as_not_finite():
    run = make_run()
    run.toy.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLoss, match=r"step 0: .* \(error 4, gradient norm inf\) on the batch image0, image1"):
        run.go(max_skipped_steps=0)
    assert run.toy.weight.item() == 3.0


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_step_that_is_diagnosed_may_be_one(log_every):
    run = make_run(nan_at=(0,)).go(steps=3, diagnose_every=3, log_every=log_every)
    (_, values) = run.recorder.training_rows()[-1]
    assert values["train/update_ratio/weight"] > 0


@LOG_EVERY
def test_with_fused_adamw(log_every):
    def adamw(nan_at: tuple[int, ...]) -> Run:
        run = make_run(nan_at=nan_at)
        group = [{"params": [run.toy.weight], "peak_lr": 0.1}]
        run.state.optimizer = torch.optim.AdamW(group, lr=0.1, fused=True)
        return run

    never = adamw(()).go(steps=5, log_every=log_every)
    skipped = adamw((3,)).go(steps=6, log_every=log_every)
    assert torch.equal(skipped.toy.weight, never.toy.weight)
    pairs = zip(
        skipped.state.optimizer.state[skipped.toy.weight].items(),
        never.state.optimizer.state[never.toy.weight].items(),
        strict=True,
    )
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


# float16


def overflowing(limit: float) -> Run:
    """Gradients above ``limit`` become infinite, as they do in float16."""
    run = make_run()
    run.toy.weight.register_hook(lambda g: torch.where(g.abs() > limit, math.inf, g))
    return run


@LOG_EVERY
def test_overflow_lowers_the_scale_and_is_no_fault_of_the_batch(log_every):
    """Scales 2^16 and 2^15 make 4 too large; a scale of 2^14 does not."""
    run = overflowing(1e5)
    run.go(steps=6, precision=Precision.fp16, log_every=log_every, max_skipped_steps=0)
    assert run.toy.weight.item() == pytest.approx(expected_weights(4)[-1], rel=1e-5)
    assert run.state.skipped_steps == 0
    assert "not finite" not in run.console.getvalue()
    assert run.recorder.states[6]["loss_scale"] == {"scale": 2.0**14, "steps": 4.0}
    assert run.recorder.training_rows()[-1][1]["train/loss_scale"] == 2.0**14


def test_what_is_not_finite_at_any_scale_counts():
    run = overflowing(1e-3)
    with pytest.raises(NonFiniteLoss):
        run.go(steps=40, precision=Precision.fp16, max_skipped_steps=1)
    assert run.recorder.states[18]["loss_scale"]["scale"] == 1
    scaled = make_run(nan_at=(1,)).go(steps=3, precision=Precision.fp16)
    assert scaled.state.skipped_steps == 1
    assert scaled.recorder.states[3]["loss_scale"]["scale"] == 2.0**16


def test_the_scale_goes_on_where_it_was():
    straight = overflowing(1e5).go(steps=6, precision=Precision.fp16)
    first = overflowing(1e5).go(steps=3, precision=Precision.fp16)
    resumed = overflowing(1e5)
    restore(resumed.state, first.recorder.states[3])
    resumed.go(steps=6, precision=Precision.fp16)
    assert states_equal(resumed.recorder.states[6], straight.recorder.states[6])


def test_an_average_of_a_wrapped_module_has_the_names_of_the_module():
    run = make_run()
    state, average = run.state, ExponentialMovingAverage(run.toy, 0.9)
    for ema in (None, average):
        wrapped = TrainState(Replicated(run.toy), state.optimizer, state.loader, ema)
        assert wrapped.weights().keys() == run.toy.state_dict().keys()
