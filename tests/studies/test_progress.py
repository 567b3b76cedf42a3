"""How far runs are, by what lies in their folders and in the study's."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from mmlm.record.lock import RunLock, holder_of
from mmlm.studies.grid import Run
from mmlm.studies.place import Task, is_alive, last_words
from mmlm.studies.progress import Phase, State, last_row, seconds_left, state_of, summary, table


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of 10 steps that has not begun."""
    return Run("mlp", 0, ("experiment=x",), tmp_path / "runs" / "x" / "abc" / "seed=0", 10)


def train(run: Run, step: int, finished: bool = False) -> None:
    """What a run leaves at a step; a step takes 2 seconds."""
    run.folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": at, "seconds": 2.0 * at, "train/loss": "NaN"} for at in range(1, step + 1)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("report.html", "scores.json") if finished else ():
        (run.folder / name).touch()


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_run_that_nobody_has_begun_waits(run, place):
    assert state_of(run, place, {}) == State(Phase.waiting)


def test_a_run_is_done_once_its_report_is_there_at_its_last_step(run, place):
    train(run, 9, finished=True)  # evaluated on its way
    assert state_of(run, place, {}).phase is Phase.waiting
    train(run, 10)
    assert state_of(run, place, {}) == State(Phase.done, 10, 20.0)
    (run.folder / "report.html").unlink()
    assert state_of(run, place, {}).phase is Phase.waiting


def test_a_run_runs_while_its_folder_is_held_whoever_holds_it(run, place):
    train(run, 4)
    with RunLock(run.folder):
        found = state_of(run, place, {})
        assert (found.phase, found.step) == (Phase.running, 4)
        assert f"process {os.getpid()} on " in found.note
    assert state_of(run, place, {}) == State(Phase.waiting, 4, 8.0, "begun, and stopped at step 4")


def test_the_lock_of_a_process_that_was_killed_is_held_by_nobody(run, place):
    train(run, 4)
    record = {"host": os.uname().nodename, "pid": os.getpid(), "since": "then"}
    (run.folder / "lock").write_text(json.dumps(record))
    assert holder_of(run.folder) is None, "the number is another process's by now"
    (run.folder / "lock").write_text(json.dumps({**record, "pid": dead_process()}))
    assert holder_of(run.folder) is None
    assert holder_of(run.folder / "nowhere") is None


def test_a_run_that_is_starting_runs(run, place):
    place.began(run.label, "code", pid=os.getpid())
    here = b"mmlm" in Path(f"/proc/{os.getpid()}/cmdline").read_bytes()
    assert is_alive(place.task(run.label)) == here, "a number that another program has by now does not count"
    assert not is_alive(Task("another", os.getpid(), None, ()))
    place.began(run.label, "code", pid=dead_process())
    assert state_of(run, place, {}) == State(Phase.failed, 0, 0.0, "was cut off")


@pytest.mark.parametrize(
    ("status", "log", "phase", "note"),
    [
        (75, "", Phase.waiting, "stopped at step 4"),
        (143, "", Phase.waiting, "stopped at step 4"),
        (130, "", Phase.waiting, "stopped at step 4"),
        (0, "", Phase.waiting, "ended at step 4"),
        (-9, "", Phase.failed, "ended by SIGKILL"),
        (137, "", Phase.failed, "ended by SIGKILL"),
        (2, "a\nmmlm: train.batch_size: 9 is too large\n", Phase.failed, "train.batch_size: 9 is too large"),
        (1, "Traceback:\n  line\nValueError: a bug\n", Phase.failed, "ValueError: a bug"),
        (1, "", Phase.failed, "ended with status 1"),
    ],
)
def test_how_a_run_has_ended(run, place, status, log, phase, note):
    train(run, 4)
    place.began(run.label, "code", pid=dead_process())
    place.log(run.label).write_text(log)
    place.ended(run.label, status)
    assert state_of(run, place, {}) == State(phase, 4, 8.0, note)


def test_tasks_of_slurm_are_what_slurm_says(run, place):
    place.began(run.label, "code", job="7_3")
    assert state_of(run, place, {"7_3": "PENDING"}) == State(Phase.waiting, 0, 0.0, "job 7_3")
    assert state_of(run, place, {"7_3": "RUNNING"}).phase is Phase.running
    assert state_of(run, place, {"7_2": "RUNNING"}) == State(Phase.waiting, 0, 0.0, "job 7_3 is gone")


def test_codes_of_all_starts_are_kept(run, place):
    for code in ("a", "a", "b"):
        place.began(run.label, code, pid=1)
    assert place.task(run.label).codes == ("a", "b")
    (place.folder / "tasks" / f"{run.label}.json").write_text("{}")
    assert place.task(run.label) is None


def test_the_last_row_is_the_last_whole_one(run):
    assert last_row(run.folder) == (0, 0.0)
    train(run, 3)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "seco')
    assert last_row(run.folder) == (3, 6.0)


def test_last_words(tmp_path):
    (tmp_path / "log").write_text("step 1\nmmlm: 3 images cannot be read\n" + "step 2\n" * 30)
    assert last_words(tmp_path / "log") == "step 2", "what a command has said of itself long ago is not why it ended"
    assert last_words(tmp_path / "none") == ""


def test_the_grid_and_the_time_that_is_left(tmp_path):
    runs = [Run(cell, seed, (), tmp_path, 100) for seed in (0, 1) for cell in ("mlp", "pooler")]
    states = {
        "mlp.seed=0": State(Phase.done, 100, 200.0),
        "pooler.seed=0": State(Phase.running, 40, 160.0, "process 7 on n1"),
        "mlp.seed=1": State(Phase.failed, 10, 20.0, "ended by SIGKILL"),
        "pooler.seed=1": State(Phase.waiting),
    }
    assert table(runs, states) == [
        "cell    seed=0       seed=1",
        "mlp     done         failed 10%",
        "pooler  running 40%  waiting",
        "",
        "mlp seed=1: failed: ended by SIGKILL",
    ]
    # mlp takes 2 seconds a step and pooler 4; each of the three runs 5 seconds besides.
    assert seconds_left(runs, states, beside=5.0) == 90 * 2 + 60 * 4 + 100 * 4 + 15
    assert summary(runs, states, 1) == "1 done, 1 running, 1 waiting, 1 failed; about 14 min left"
    assert summary(runs, states, 2).endswith("about 7 min left")
    done = dict.fromkeys(states, State(Phase.done, 100, 200.0))
    assert summary(runs, done, 1) == "4 done, 0 running, 0 waiting, 0 failed"
    new = dict.fromkeys(states, State(Phase.waiting))
    assert summary(runs, new, 1) == "0 done, 0 running, 4 waiting, 0 failed"
