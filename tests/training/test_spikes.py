"""Loss spikes: back to the checkpoint before, on with the data after, and the same again if the run is killed."""

import math

import pytest

from mmlm.training.loop import Interrupted
from mmlm.training.spikes import LossSpike, SpikeSettings
from tests.toy_run import Run, make_run, restore, states_equal, timeless

ON = SpikeSettings(threshold=3.0, window=3)


def spiky(spikes_at: tuple[int, ...], **settings) -> Run:
    return make_run(spikes_at=spikes_at, noise=0.01, lr=0.001, **settings)


def train(run: Run, **settings) -> Run:
    return run.go(**{"steps": 12, "save_every": 4, "spike": ON} | settings)


def test_a_spike_stands_far_above_the_recent_losses():
    recent = [1.0, 2.0, 3.0]
    deviation = math.sqrt(2 / 3)
    assert not ON.is_spike(2 + 2.99 * deviation, recent)
    assert ON.is_spike(2 + 3.01 * deviation, recent)
    assert not ON.is_spike(-1e9, recent)
    assert not ON.is_spike(1e9, recent[:2])
    assert not SpikeSettings().is_spike(1e9, recent)
    assert ON.remembered(4.0, recent) == [2.0, 3.0, 4.0]
    assert SpikeSettings().remembered(4.0, []) == []


@pytest.mark.parametrize(("step", "to"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8)])
def test_it_goes_back_to_the_last_checkpoint_of_the_schedule(step, to):
    assert ON.goes_back_to(step, 4) == to
    assert SpikeSettings().goes_back_to(step, 4) is None


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_back_to_the_checkpoint_before_and_on_with_the_data_after(log_every):
    """Step 6 has the spike, step 7 is made before anyone knows; steps 4 on are made again, with batches 7 on."""
    run = train(spiky((6,)), log_every=log_every)
    assert [event for event in run.recorder.events if "rows" in event or "restore" in event] == [
        "restore 4",
        "rows up to 4",
    ]
    seen = run.toy.numbers
    assert seen[:7] == [0, 1, 2, 3, 4, 5, 6]
    assert seen[-8:] == [7, 8, 9, 10, 11, 12, 13, 14]
    assert (run.state.step, run.state.loader.position, run.state.rewinds) == (12, 30, 1)
    assert "step 6: the loss 3" in run.console.getvalue()
    assert (
        "is a spike on the batch image12, image13; back to step 4 and on with the data after it (1 of at most 3)"
        in run.console.getvalue()
    )
    other = make_run(noise=0.01, lr=0.001).go(steps=4)
    other.state.loader.position = 14
    other.go(steps=12)
    assert run.toy.weight.item() == other.toy.weight.item()


def test_rows_of_what_is_undone_are_dropped():
    run = train(spiky((6,)))
    rows = [(step, examples) for step, examples, values in run.recorder.rows if "train/loss" in values]
    assert rows == [(n, 2 * n) for n in range(1, 5)] + [(n, 6 + 2 * n) for n in range(5, 13)]
    assert max(values["train/loss"] for _, _, values in run.recorder.rows if "train/loss" in values) < 5


def test_a_spike_before_the_first_checkpoint_goes_back_to_the_start():
    run = train(spiky((3,)), best_metric="split/score")
    assert run.recorder.events[:2] == ["evaluate 0", "save 0 best"]
    assert "restore 0" in run.recorder.events
    assert [step for step, _, values in run.recorder.rows if "split/score" in values] == [0, 12]
    assert (run.state.step, run.state.loader.position) == (12, 32)


@pytest.mark.parametrize("spikes", [(6,), (6, 9), (5, 8, 9)])
@pytest.mark.parametrize("log_every", [1, 100])
def test_killed_after_going_back_it_ends_the_same(spikes, log_every):
    """All that a killed run has are its checkpoints: from each of them it ends in the same state with the same rows."""
    straight = train(spiky(spikes), log_every=log_every)
    assert straight.state.rewinds == len(spikes)
    for step, saved in straight.recorder.states.items():
        if step == 12:
            continue
        resumed = spiky(spikes)
        restore(resumed.state, saved)
        resumed.recorder.states = {n: state for n, state in straight.recorder.states.items() if n <= step}
        resumed.recorder.rows = [row for row in straight.recorder.rows if row[0] <= step]
        if step == 0:
            resumed.recorder.rows = []
        train(resumed, log_every=log_every)
        assert states_equal(resumed.recorder.states[12], straight.recorder.states[12])
        assert timeless(resumed.recorder.rows) == timeless(straight.recorder.rows)


@pytest.mark.parametrize("signal_at", [4, 5, 6, 7, 8, 9, 10])
@pytest.mark.parametrize("log_every", [1, 100])
def test_stopped_before_or_after_going_back_it_ends_the_same(signal_at, log_every):
    straight = train(spiky((6, 9)), log_every=log_every)
    stopped = spiky((6, 9))
    stopped.toy.signal_at = signal_at
    with pytest.raises(Interrupted) as interrupted:
        train(stopped, log_every=log_every)
    resumed = spiky((6, 9))
    resumed.recorder.states, resumed.recorder.rows = stopped.recorder.states, stopped.recorder.rows
    restore(resumed.state, stopped.recorder.states[interrupted.value.step])
    train(resumed, log_every=log_every)
    assert states_equal(resumed.recorder.states[12], straight.recorder.states[12])
    assert timeless(resumed.recorder.rows) == timeless(straight.recorder.rows)


def test_it_goes_back_only_so_often():
    run = spiky((6, 9, 12))
    with pytest.raises(LossSpike) as ended:
        train(run, spike=SpikeSettings(threshold=3.0, window=3, max_rewinds=2))
    assert "is a spike on the batch" in str(ended.value)
    assert "train.spike.max_rewinds is 2; lower optim.lr" in str(ended.value)
    assert run.recorder.events.count("restore 4") == 2
    assert max(run.recorder.states) == 4


def test_it_is_off_by_default():
    run = spiky((6,)).go(steps=12, save_every=4)
    assert run.state.rewinds == 0
    assert run.recorder.states[12]["recent_losses"] == []
    assert "save 0" not in run.recorder.events
