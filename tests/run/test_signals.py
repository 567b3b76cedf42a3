"""A signal in every phase of a training: what is there is kept, the status is right, the same command goes on.

The signals come one after another, each in a new start of the same command and in another phase. The last start gets
none, and its run has to be the one that nothing happened to. That all signals are alike, and what each does in every
phase of ``fit()`` and of a command, is in ``tests/core/test_stop.py``, ``tests/training/test_loop.py`` and
``tests/cli/test_exits.py``.
"""

import re
import signal

import pytest

from mmlm.core.errors import STOPPED
from mmlm.record.folder import find_run
from tests.run.test_resume import RANDOM, assert_same_runs
from tests.signalled import signal_in

STEPS = 9
SETTINGS = (*RANDOM, f"train.steps={STEPS}", "train.eval_every=2", "train.best_metric=validation/captioning/CIDEr-D")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SESSION = "mmlm.run.session"
AT_ONCE = {
    "composing": "mmlm.commands.train.check_config",
    "building": "mmlm.run.ranks.build_experiment",
    "first batch": f"{SESSION}.check_first_batch",
}
"""Phase -> the function in which the signal comes. There is nothing of this start to save, and it ends at once."""
BETWEEN_STEPS = {
    "step": "mmlm.training.update.Update._backward",
    "waiting for data": "mmlm.data.loader.collate",
    "row of metrics": "mmlm.record.metrics.MetricLog.log",
    "saving": "mmlm.checkpoints.writer.CheckpointWriter.save",
    "evaluation": "mmlm.evaluation.evaluate.encode_split",
    "a score": "mmlm.evaluation.evaluators.ImageUse.__call__",
}
"""The same, after a step of this start: the state is saved."""
AROUND = {
    "writing what the run is": f"{SESSION}.record_figures",
    "going on": f"{SESSION}.resume_run",
    "before the first step": "mmlm.training.loop._begin",
    "final evaluation": "mmlm.evaluation.evaluate.Evaluation.write",
    "samples": "mmlm.evaluation.evaluate.collect_samples",
    "scores": "mmlm.evaluation.evaluate._merge",
}
"""The same, before the first step and after the last one: all that has been trained is saved already."""


def test_a_signal_in_every_phase(trained, train_tiny):
    for place, (phase, where) in enumerate((AT_ONCE | BETWEEN_STEPS | AROUND).items()):
        number = SIGNALS[place % len(SIGNALS)]
        once = "mmlm.training.update.Update.__call__" if phase in BETWEEN_STEPS and phase != "step" else None
        with signal_in(where, number, once) as came:
            outcome = train_tiny(*SETTINGS, "name=stopped")
        assert came == [number], phase
        if phase in AT_ONCE:
            line = f"mmlm: interrupted by {number.name}\n"
            assert (outcome.status, outcome.err) == (128 + number, line), phase
        else:
            assert (outcome.status, outcome.err) == (STOPPED, ""), (phase, outcome)
            assert re.search("stopped and saved at step [1-9]; resume with: python -m mmlm.train ", outcome.out), phase
    straight = trained(*SETTINGS, "name=straight")
    resumed = train_tiny(*SETTINGS, "name=stopped")
    assert (resumed.status, resumed.err) == (0, "")
    assert_same_runs(straight, find_run(str(straight.parents[1] / "stopped")), STEPS)


def test_before_the_first_step_there_is_nothing_to_save(train_tiny):
    with signal_in("mmlm.training.loop._begin", signal.SIGUSR1):
        outcome = train_tiny()
    assert (outcome.status, outcome.err) == (STOPPED, "")
    assert "stopped before the first step; resume with: python -m mmlm.train " in outcome.out


def test_a_signal_while_the_report_is_written_is_too_late_to_stop(train_tiny):
    with signal_in(f"{SESSION}.write_report", signal.SIGUSR1):
        outcome = train_tiny()
    assert (outcome.status, outcome.err) == (0, "")
    assert "finished already" in train_tiny().out


@pytest.mark.parametrize(
    ("where", "number", "status"),
    [("mmlm.training.update.Update._backward", signal.SIGINT, STOPPED), (AT_ONCE["building"], signal.SIGHUP, 129)],
)
def test_a_signal_ends_a_whole_sweep(train_tiny, tmp_path, where, number, status):
    """Whoever stops it does not mean the run that happens to train."""
    with signal_in(where, number):
        outcome = train_tiny("seed=0,1", "-m")
    assert outcome.status == status, outcome
    assert "seed=1" not in [folder.name for folder in tmp_path.glob("runs/*/*/seed=*")]
