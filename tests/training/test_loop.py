"""``fit()`` on a toy module: what is logged, evaluated and saved when, and how a run stops."""

import functools
import math
import signal
from collections.abc import Callable, Mapping

import pytest
import torch

from mmlm.core.computing import resolved
from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.core.stop import SIGNALS, StopAsked
from mmlm.data.unreadable import Unreadable
from mmlm.optim.schedules import Cosine
from mmlm.training.loop import Interrupted
from mmlm.training.messages import NonFiniteLoss, describe_corrupt
from tests.toy_run import ToyLoader, expected_weights, make_run, restore, states_equal, timeless


def test_trains_and_logs_every_step():
    run = make_run().go()
    assert run.toy.weight.item() == pytest.approx(expected_weights(6)[-1], rel=1e-5)
    steps = [step for step, _ in run.recorder.training_rows()]
    assert steps == [1, 2, 3, 4, 5, 6]
    weights = [3.0, *expected_weights(6)[:-1]]
    for (step, examples, values), weight in zip(run.recorder.rows, weights, strict=False):
        assert examples == 2 * step
        assert values["train/loss"] == values["train/error"] == pytest.approx((weight - 1) ** 2, rel=1e-4)
        assert values["train/gradient_norm"] == pytest.approx(abs(2 * (weight - 1)), rel=1e-4)
        assert values["train/error/number"] == step - 1
        assert values["train/lr"] == pytest.approx(0.1)
        assert values["train/examples_per_second"] > 0
    assert run.toy.training_modes == [True] * 6
    assert (run.state.step, run.state.loader.position) == (6, 12)


def test_a_row_is_the_mean_of_its_window_and_the_last_step_has_one():
    run = make_run().go(steps=5, log_every=2)
    rows = run.recorder.training_rows()
    assert [step for step, _ in rows] == [2, 4, 5]
    losses = [(weight - 1) ** 2 for weight in [3.0, *expected_weights(4)]]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert [values["train/loss"] for _, values in rows] == pytest.approx(means, rel=1e-4)


def test_what_happens_when():
    run = make_run().go(steps=7, eval_every=3, save_every=2)
    assert run.recorder.events == [
        "save 2",
        "evaluate 3",
        "save 4",
        "evaluate 6",
        "save 6",
        "evaluate 7",
        "save 7",
    ]
    assert [step for step, _, values in run.recorder.rows if "split/score" in values] == [3, 6, 7]


def test_null_intervals_mean_the_end_only():
    assert make_run().go(steps=3).recorder.events == ["evaluate 3", "save 3"]


def test_a_run_that_is_done_trains_no_further():
    run = make_run()
    run.state.step = 6
    run.go(steps=6)
    assert run.recorder.events == run.recorder.rows == run.toy.training_modes == []


def test_the_optimizer_follows_the_step_before_it_is_made_and_before_it_is_saved():
    run, asked = make_run(), []
    other = torch.optim.SGD([{"params": [run.toy.weight], "peak_lr": 0.0}], lr=0.0)

    def optimizer_for(step, optimizer):
        asked.append(step)
        return other if step >= 2 else optimizer

    run.state.optimizer_for = optimizer_for
    run.go(steps=4, save_every=2)
    assert asked == [1, 2, 3, 4]
    assert run.toy.weight.item() == pytest.approx(expected_weights(2)[-1], rel=1e-5)
    assert run.recorder.states[2]["optimizer"]["groups"][0]["settings"]["momentum"] == 0, "that of the other"


def test_the_learning_rate_follows_the_schedule():
    schedule = Cosine(warmup_steps=2)
    rows = make_run(lr=0.01).go(schedule).recorder.training_rows()
    assert [values["train/lr"] for _, values in rows] == pytest.approx([0.01 * schedule(s, 6) for s in range(6)])


def test_gradients_are_clipped_and_their_norm_is_told_from_before():
    run = make_run().go(steps=1, clip_norm=0.5)
    assert run.recorder.rows[0][2]["train/gradient_norm"] == pytest.approx(4.0)
    assert run.toy.weight.item() == pytest.approx(3.0 - 0.1 * 0.5, rel=1e-4)


@pytest.mark.parametrize("precision", list(Precision))
def test_precision_reaches_the_forward_pass(precision):
    run = make_run().go(steps=2, precision=precision)
    assert run.toy.autocast == [resolved(precision, torch.device("cpu")) is not Precision.fp32] * 2
    assert not torch.is_autocast_enabled("cpu")


# Best and average


def test_the_best_checkpoint_is_the_one_with_the_largest_value():
    run = make_run()
    run.recorder.scores = {0: 0.1, 1: 0.0, 2: 0.5, 3: math.nan, 4: 0.5, 5: 0.7, 6: 0.2}
    run.go(eval_every=1, best_metric="split/score")
    assert [event for event in run.recorder.events if "save" in event] == [
        "save 0 best",
        "save 2 best",
        "save 5 best",
        "save 6",
    ]
    assert run.state.best == 0.7
    assert run.recorder.states[6]["best"] == 0.7


def test_a_resumed_run_remembers_its_best():
    run = make_run()
    run.state.step, run.state.best = 3, 0.6
    run.recorder.scores = {4: 0.5, 5: 0.61, 6: 0.2}
    run.go(eval_every=1, best_metric="split/score")
    assert run.recorder.events[0] == "evaluate 4"
    assert [event for event in run.recorder.events if "best" in event] == ["save 5 best"]


def test_a_best_metric_that_is_not_evaluated_is_refused_before_the_first_step():
    run = make_run()
    with pytest.raises(UserError, match=r"best_metric: 'split/scor' is not evaluated; there are: split/score, w"):
        run.go(best_metric="split/scor")
    assert run.toy.training_modes == []


def test_an_evaluation_that_fails_loses_no_training():
    run = make_run()

    def fails(step):
        raise UserError("one concept has 3 of 4 images")

    run.recorder.evaluate = fails
    with pytest.raises(UserError, match="one concept"):
        run.go(steps=4, eval_every=2)
    assert run.recorder.events == ["save 2"]
    assert run.recorder.states[2]["step"] == 2


def test_the_average_is_what_is_judged_and_training_goes_on_with_its_own_weights():
    plain, averaged = make_run().go(eval_every=2), make_run(ema=0.9).go(eval_every=2)
    assert torch.equal(plain.toy.weight, averaged.toy.weight)
    weights = expected_weights(6)
    average, expected = 3.0, {}
    for step, weight in enumerate(weights):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        expected[step + 1] = average
    seen = {step: values["weight"] for step, _, values in averaged.recorder.rows if "weight" in values}
    assert seen == pytest.approx({step: expected[step] for step in (2, 4, 6)}, rel=1e-5)
    assert averaged.state.weights()["weight"].item() == pytest.approx(expected[6], rel=1e-5)
    assert plain.state.weights()["weight"].item() == pytest.approx(weights[-1], rel=1e-5)


def test_own_weights_come_back_after_an_evaluation_that_fails():
    run = make_run(ema=0.9).go(steps=2)
    own = run.toy.weight.item()

    def judge_and_fail() -> None:
        with run.state.evaluating():
            assert run.toy.weight.item() != own
            assert not run.toy.training
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        judge_and_fail()
    assert run.toy.weight.item() == own
    assert run.toy.training


# Stopping


@pytest.mark.parametrize("log_every", [1, 6])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_finishes_the_step_saves_and_goes_on_exactly(log_every, number):
    step = 4
    straight = make_run(noise=0.3).go(log_every=log_every, steps=8)
    stopped = make_run(noise=0.3)
    stopped.toy.signal_at, stopped.toy.signal = 3, number  # while the fourth step is made
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped at step {step} by {number.name}") as interrupted:
        stopped.go(log_every=log_every, steps=8)
    assert (interrupted.value.step, interrupted.value.signal_name) == (step, number.name)
    assert stopped.recorder.events == [f"save {step}"]
    assert signal.getsignal(number) is before

    torch.manual_seed(99)
    resumed = make_run(noise=0.3)
    restore(resumed.state, stopped.recorder.states[step])
    resumed.go(log_every=log_every, steps=8)
    assert states_equal(resumed.recorder.states[8], straight.recorder.states[8])
    rows = timeless(stopped.recorder.rows) + timeless(resumed.recorder.rows)
    assert rows == timeless(straight.recorder.rows)
    assert resumed.state.seconds > stopped.recorder.states[step]["seconds"]


def test_a_signal_in_the_last_step_leaves_the_last_evaluation_to_whoever_goes_on():
    straight, stopped = make_run().go(), make_run()
    stopped.toy.signal_at = 5
    with pytest.raises(Interrupted, match="stopped at step 6"):
        stopped.go()
    assert stopped.recorder.events == ["save 6"]
    resumed = make_run()
    restore(resumed.state, stopped.recorder.states[6])
    resumed.go()
    assert resumed.recorder.events == ["evaluate 6", "save 6"]
    assert timeless(stopped.recorder.rows + resumed.recorder.rows) == timeless(straight.recorder.rows)
    assert states_equal(resumed.recorder.states[6], straight.recorder.states[6])


def test_an_evaluation_stops_between_two_batches_and_is_made_anew():
    """As ``Evaluation`` does, by the request that its run has."""
    settings = {"eval_every": 2, "best_metric": "split/score", "steps": 6}
    straight, stopped = make_run().go(**settings), make_run()
    evaluate = stopped.recorder.evaluate

    def interrupted(step):
        if step == 4:
            raise StopAsked("SIGUSR1")
        return evaluate(step)

    stopped.recorder.evaluate = interrupted
    with pytest.raises(Interrupted, match="stopped at step 4 by SIGUSR1"):
        stopped.go(**settings)
    assert stopped.recorder.events[-1] == "save 4"
    resumed = make_run()
    restore(resumed.state, stopped.recorder.states[4])
    resumed.go(**settings)
    assert timeless(stopped.recorder.rows + resumed.recorder.rows) == timeless(straight.recorder.rows)
    assert states_equal(resumed.recorder.states[6], straight.recorder.states[6])


def test_an_evaluation_that_was_made_up_for_is_not_made_a_third_time():
    """Whatever ends the session after it: its row is there already."""
    run = make_run()
    run.state.step, run.state.position, run.state.owes_evaluation = 4, 8, True
    run.go(steps=5)
    assert run.recorder.events[:2] == ["evaluate 4", "save 4"]
    assert run.recorder.states[4]["owes_evaluation"] is False


class EndingLoader(ToyLoader):
    """After its third batch there is no other: ``end`` is called in its place."""

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__()
        self.end = end

    def __iter__(self):
        for batch in super().__iter__():
            if batch.position == 8:
                self.end()
            yield batch


def goes_away() -> None:
    raise UserError("all 2 images of a batch are corrupt")


@pytest.mark.parametrize("log_every", [1, 4])
@pytest.mark.parametrize(
    ("end", "error"),
    [*((functools.partial(signal.raise_signal, number), Interrupted) for number in SIGNALS), (goes_away, UserError)],
    ids=[*(number.name for number in SIGNALS), "data"],
)
def test_what_is_trained_is_saved_while_data_does_not_come(end, error, log_every):
    straight = make_run(noise=0.3).go(log_every=log_every)
    ended = make_run(EndingLoader(end), noise=0.3)
    with pytest.raises(error):
        ended.go(log_every=log_every)
    assert ended.recorder.events == ["save 3"]
    resumed = make_run(noise=0.3)
    restore(resumed.state, ended.recorder.states[3])
    resumed.go(log_every=log_every)
    assert timeless(ended.recorder.rows + resumed.recorder.rows) == timeless(straight.recorder.rows)
    assert states_equal(resumed.recorder.states[6], straight.recorder.states[6])


def test_nothing_is_saved_where_nothing_was_trained():
    run = make_run(EndingLoader(goes_away))
    run.state.step, run.state.position, run.state.loader.position = 3, 6, 6
    with pytest.raises(UserError):
        run.go()
    assert run.recorder.events == []


def test_an_evaluation_does_not_keep_a_run_from_stopping_and_is_made_up_for():
    settings = {"eval_every": 2, "best_metric": "split/score", "steps": 6}
    straight = make_run().go(**settings)
    stopped = make_run()
    stopped.toy.signal_at = 3
    with pytest.raises(Interrupted):
        stopped.go(**settings)
    assert stopped.recorder.events[-2:] == ["save 2 best", "save 4"]
    resumed = make_run()
    restore(resumed.state, stopped.recorder.states[4])
    resumed.go(**settings)
    assert resumed.recorder.events[:2] == ["evaluate 4", "save 4 best"]
    assert timeless(stopped.recorder.rows + resumed.recorder.rows) == timeless(straight.recorder.rows)
    assert states_equal(resumed.recorder.states[6], straight.recorder.states[6])


def test_every_step_draws_what_its_number_says():
    """Whatever was drawn before it: by another run, by an evaluation."""
    torch.manual_seed(1)
    run = make_run(noise=0.3).go(steps=4)
    torch.manual_seed(2)
    other = make_run(noise=0.3)
    evaluate = other.recorder.evaluate

    def draws(step):
        torch.rand(5)
        return evaluate(step)

    other.recorder.evaluate = draws
    other.go(steps=4, eval_every=1)
    assert torch.equal(run.toy.weight, other.toy.weight)
    assert len(set(run.toy.draws)) == 4
    seeded = make_run(noise=0.3)
    seeded.state.seed = 1
    assert not set(seeded.go(steps=4).toy.draws) & set(run.toy.draws)


def test_a_state_holds_only_what_can_be_read_without_running_code(tmp_path):
    run = make_run().go(steps=3, log_every=2)
    file = tmp_path / "state.pt"
    torch.save({key: value for key, value in run.recorder.states[3].items() if key != "weights"}, file)
    assert torch.load(file, weights_only=True)["windows"][0]["steps"] == 0


def test_a_second_ctrl_c_stops_at_once():
    run = make_run()

    def twice(step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    run.recorder.log = twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert signal.getsignal(signal.SIGINT) is before


# Corrupt images


def test_corrupt_images_are_named_at_the_end_of_their_epoch():
    loader = ToyLoader(corrupt={1: ("b.png: is damaged",), 2: ("a.png: is empty",), 4: ("b.png: is damaged",)})
    text = make_run(loader).go(steps=8, log_every=1).console.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    assert lines == [
        "epoch 0: 2 images could not be decoded: a.png: is empty; b.png: is damaged",
        "epoch 1: 1 image could not be decoded: b.png: is damaged",
    ]


@pytest.mark.parametrize("end", ["last step", "signal", "not finite"])
def test_corrupt_images_of_an_unfinished_epoch_are_named_too(end):
    loader = ToyLoader(corrupt={0: ("b.png: is damaged",)})
    run = make_run(loader, nan_at=(1,) if end == "not finite" else ())
    if end == "last step":
        run.go(steps=1)
    elif end == "signal":
        run.toy.signal_at = 0
        with pytest.raises(Interrupted):
            run.go()
    else:
        with pytest.raises(NonFiniteLoss):
            run.go(max_skipped_steps=0)
    assert "epoch 0: 1 image could not be decoded: b.png: is damaged\n" in run.console.getvalue()


def test_ten_corrupt_images_are_named_and_the_rest_counted():
    reasons = ["is damaged (x)" if number == 12 else "is empty" for number in range(13)]
    found = Unreadable()
    found.add(f"{number:02d}.png: {reasons[number]}" for number in [*range(13), 4])
    text = describe_corrupt("val", found)
    assert text.startswith("val: 13 images could not be decoded: 00.png: is empty; 01.png: is empty;")
    assert text.endswith("; 09.png: is empty; and 3 more (in all 12 is empty, 1 is damaged)")


# Diagnoses


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"diagnose_every": 3}, [1, 3, 6]),
        ({"diagnose_every": None}, []),
        ({}, [1]),
        ({"diagnose_every": 1}, [*range(1, 7)]),
    ],
)
def test_the_first_step_is_diagnosed_and_every_so_many(settings, steps):
    run = make_run().go(**settings)
    rows = [(step, values) for step, values in run.recorder.training_rows() if "train/update_ratio/weight" in values]
    assert [step for step, _ in rows] == run.toy.diagnosed_steps == steps
    weights = [3.0, *expected_weights(6)]
    for step, values in rows:
        ratio = abs(weights[step] - weights[step - 1]) / abs(weights[step - 1])
        assert values["train/update_ratio/weight"] == pytest.approx(ratio, rel=1e-4)
    assert run.toy.weight.item() == pytest.approx(expected_weights(6)[-1], rel=1e-5)


def test_diagnoses_are_not_among_what_the_console_shows():
    run = make_run().go(diagnose_every=1)
    assert "train/update_ratio/weight" in run.recorder.training_rows()[-1][1]
    assert "step 6/6" in run.console.getvalue()
    assert "update_ratio" not in run.console.getvalue()
