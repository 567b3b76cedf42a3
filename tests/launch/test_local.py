"""``launcher=local`` with real processes: what ranks share, what ends them, and that nothing is lost by it."""

import os
import platform
import re
import shlex
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmlm import train
from mmlm.core.errors import STOPPED, USER_ERROR
from mmlm.record.metrics import read_metrics
from tests.launch.processes import FAULTY, LOCAL, RANDOM, finish, told, wait
from tests.run.test_resume import assert_same_runs, rows

pytestmark = pytest.mark.slow


def close(first, second) -> None:
    """Whole rows of metrics that agree to 1e-4 but for the clock's: float32, after some steps.

    Rates of items (accuracies, scores) agree to less than an item then, since there are few: they are the same.
    """
    # How much is filled up depends on the shares that ranks have of a batch.
    one, other = (
        [{k: v for k, v in row.items() if k != "train/padding"} for row in rows(run)] for run in (first, second)
    )
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


# Ranks


def test_ranks_make_one_run(straight, place):
    outcome, folder = straight
    found = [file.relative_to(place / "runs").parts for file in (place / "runs").rglob("config.yaml")]
    assert found.count((*folder.relative_to(place / "runs").parts, "config.yaml")) == 1
    assert [len(re.findall(f"step {step}/6 ", outcome.out)) for step in range(1, 7)] == [1] * 6
    assert len(re.findall(r"2 by launcher=local \(gloo\), each 2 examples a step", outcome.out)) == 1
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6, 6]
    assert {"report.html", "scores.json", "samples.json"} <= {file.name for file in folder.iterdir()}


def test_a_run_of_one_process_goes_on_with_four_ranks(here, straight_alone, alike, folder_of):
    """Of one image each: those whose image cannot be read, or has no caption, have none."""
    stopped = here(*alike, "name=from_alone", fault="itself-SIGTERM:0:3")
    assert (stopped.status, stopped.err) == (STOPPED, ""), stopped
    resumed = here(*alike, "launcher=local", "processes=4", "name=from_alone")
    assert (resumed.status, resumed.err) == (0, "")
    assert "resumed at step 4" in resumed.out
    close(straight_alone, folder_of("from_alone"))


def test_a_run_of_two_ranks_goes_on_with_one_process(ordered, here, straight_alone, alike, folder_of):
    settings = (*alike, "name=from_together")
    stopped = ordered.run("mmlm.train", *settings, *LOCAL, fault="parent-SIGTERM:0:3")
    assert (stopped.status, stopped.err) == (STOPPED, ""), stopped
    resumed = here(*settings)
    assert (resumed.status, resumed.err) == (0, "")
    assert "resumed at step 4" in resumed.out
    close(straight_alone, folder_of("from_together"))
    assert any("gradient_cosine/" in name for row in rows(straight_alone) for name in row)


# Signals and deaths


def test_a_stop_signal_to_the_parent_saves_and_the_same_command_goes_on(straight, ordered, here, tiny_there, folder_of):
    command = ("mmlm.train", *tiny_there, *RANDOM, *LOCAL, "name=stopped")
    for number, (name, step) in enumerate((("SIGUSR1", 1), ("SIGINT", 4))):
        stopped = ordered.run(*command, fault=f"parent-{name}:{number}:{step}")
        assert (stopped.status, stopped.err) == (STOPPED, ""), stopped
        at, again = re.search(r"stopped and saved at step (\d); resume with: (.*)", stopped.out).groups()
        assert step < int(at) < 6
        assert shlex.split(again) == ["python", "-m", *command]
    resumed = here(*command[1:])
    assert (resumed.status, resumed.err) == (0, ""), resumed
    assert f"resumed at step {at}" in resumed.out
    assert_same_runs(straight[1], folder_of("stopped"))


def test_ranks_go_back_together_before_a_loss_spike(here, tiny_there, folder_of):
    spikes = ("train.steps=9", "train.save_every=4", "train.spike.threshold=6", "train.spike.window=3", "optim=adamw")
    outcome = here(*tiny_there, *FAULTY, *LOCAL, *spikes, "name=spike", fault="leap:0:5")
    assert (outcome.status, outcome.err) == (0, ""), outcome
    found = re.findall(r"step (\d): the loss \S+ is a spike on the batch .*; back to step 4 and on", outcome.out)
    assert found == ["6"], outcome.out
    told = rows(folder_of("spike"))
    assert [row["step"] for row in told] == [*range(1, 10), 9]
    assert max(row["train/loss"] for row in told[:-1]) < 2 * told[0]["train/loss"]


def test_a_killed_rank_is_named_and_all_start_again(straight, here, tiny_there, folder_of):
    saved = folder_of("killed") / "checkpoints" / "step=000002"
    outcome = here(*tiny_there, *RANDOM, *LOCAL, "logger=tensorboard", "name=killed", fault="kill:0:3", after=saved)
    assert outcome.status == 0, outcome
    assert "rank 0 was ended by SIGKILL; starting all ranks again (1 of 4)" in told(outcome)
    assert "resumed at step 2 from" in outcome.out
    assert "Traceback" not in outcome.err
    assert_same_runs(straight[1], folder_of("killed"))
    # One of the ranks keeps the copy, which has no step twice.
    (copy,) = (folder_of("killed") / "tensorboard").glob("events*")
    shown = EventAccumulator(str(copy.parent), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.thorough
def test_what_kills_a_rank_at_the_same_step_every_time_ends_the_run_by_name(straight, here, tiny_there, folder_of):
    settings = (*tiny_there, *RANDOM, *LOCAL, "launcher.max_restarts=50", "name=doomed")
    outcome = here(*settings, fault="die:1:5", after=folder_of("doomed") / "checkpoints" / "step=000004")
    assert outcome.status == USER_ERROR, outcome
    *before, last = told(outcome)
    restarts = [line for line in before if "starting" in line]
    assert restarts == [f"rank 1 was ended by SIGKILL; starting all ranks again ({n} of 50)" for n in range(1, 5)]
    batch, node = r"on the batch (\w+\.png, ){3}\w+\.png", re.escape(platform.node())
    assert re.fullmatch(
        rf"the last 4 starts of \S+ died at step 6, {batch}, on {node}, with no new checkpoint between them; what was "
        r"saved is intact \(step 4\); see what they said, or leave these examples out; the same command tries again",
        last,
    )
    assert re.findall(r"resumed at step (\d)", outcome.out) == ["4", "2", "2"]
    assert len(re.findall("goes back one checkpoint, to step 2", outcome.out)) == 2
    assert here(*settings).status == 0
    assert_same_runs(straight[1], folder_of("doomed"))


def test_without_restarts_it_says_how_to_go_on(straight, here, tiny_there, folder_of):
    settings = (*tiny_there, *RANDOM, *LOCAL, "launcher.max_restarts=0", "name=given_up")
    outcome = here(*settings, fault="kill:1:3")
    assert outcome.status == 1
    again = shlex.join(["python", "-m", "mmlm.train", *settings])
    assert told(outcome)[-1] == f"rank 1 was ended by SIGKILL; what was saved is intact, go on with: {again}"
    assert here(*settings).status == 0
    assert_same_runs(straight[1], folder_of("given_up"))


def test_ranks_whose_parent_is_killed_save_and_end(straight, ordered, here, tiny_there, folder_of):
    command = ("mmlm.train", *tiny_there, *RANDOM, *LOCAL, "name=orphans")
    orphaned = finish(ordered.start(*command, fault="parent-SIGKILL:1:3"))  # ends with the ranks, who hold its output
    assert orphaned.status == -signal.SIGKILL
    assert "stopped and saved at step 4" in orphaned.out
    assert orphaned.err == ""
    resumed = here(*command[1:])
    assert (resumed.status, resumed.err) == (0, "")
    assert "resumed at step 4" in resumed.out
    assert_same_runs(straight[1], folder_of("orphans"))


def test_before_training_a_stop_signal_ends_all_ranks_at_once(ordered, tiny_there, folder_of):
    process = ordered.start("mmlm.train", *tiny_there, *RANDOM, *LOCAL, "name=early")
    wait(lambda: (folder_of("early") / "config.yaml").exists(), "it has not begun")
    wait(lambda: len(children(process.pid)) == 2, "it has started no ranks")
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.status == 130
    (line,) = told(outcome)
    assert line.startswith("ended by SIGINT; what was saved is intact, go on with: python -m mmlm.train ")
    assert outcome.err.count("\n") == 1


def children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return file.read().split()


# Mistakes and bugs


def test_a_mistake_that_all_ranks_find_is_told_once_and_leaves_no_run(here, tiny_there, folder_of):
    outcome = here(*tiny_there, *LOCAL, "train.batch_size=3", "name=odd")
    assert outcome.mistake.endswith("train.batch_size: 3 is no multiple of the 2 ranks that share it; use 2")
    assert not folder_of("odd").exists()


def test_a_batch_that_cannot_be_read_ends_all_with_one_line(here, tiny_there, place, tmp_path):
    """All images but one are damaged, so that each of two ranks has nothing of some batch of two."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in (place / "shapes").iterdir():
        data = file.read_bytes()
        is_damaged = file.suffix == ".png" and file.name != "red_square.png"
        (folder / file.name).write_bytes(data[:60] if is_damaged else data)
    settings = (f"data.train.folder={folder}", "train.batch_size=2", "train.steps=6", "name=damaged")
    outcome = here(*tiny_there, *LOCAL, *settings)
    assert "all 2 images of a batch are corrupt (the first is " in outcome.mistake


def test_a_bug_on_one_rank_keeps_its_traceback_and_ends_all(here, tiny_there):
    outcome = here(*tiny_there, *FAULTY, *LOCAL, "name=bug", fault="raise:1:1")
    assert outcome.status == 1
    assert outcome.err.count("Traceback (most recent call last)") == 1
    assert outcome.err.count("RuntimeError: a bug on one rank") == 1
    assert "own_faults.py" in outcome.err
    assert told(outcome)[-1].startswith("rank 1 ended with status 1, and would again; what was saved is intact")


def test_several_processes_need_a_launcher(command, tiny_there):
    mistake = command(train, *tiny_there, "processes=2").mistake
    assert mistake == "processes: 2 has no effect without a launcher; add launcher=local"


# A rank that is late


def test_the_watchdog_names_a_rank_that_stands_still(straight, ordered, tiny_there, folder_of):
    settings = (*RANDOM, *LOCAL, "ranks.watchdog_seconds=2", "ranks.timeout_seconds=120", "name=late")
    process = ordered.start("mmlm.train", *tiny_there, *settings, fault="stop:1:3")
    pid = ordered.pid()
    # Where it was is what it said last, some time before it stopped.
    late = re.compile(r"watchdog: rank 1 is late: not heard from; it was at '.*'; rank 0 waits at 'step 4: training'")
    assert any(late.search(line) for line in iter(process.stderr.readline, ""))
    stacks = (folder_of("late") / "stacks" / "rank=0.txt").read_text()
    assert "step 4: training for" in stacks
    assert "update.py" in stacks
    os.kill(pid, signal.SIGCONT)
    assert finish(process).status == 0
    assert_same_runs(straight[1], folder_of("late"))


@pytest.mark.thorough
def test_a_rank_that_never_goes_on_is_killed_and_all_start_again(straight, here, tiny_there, folder_of):
    limits = ("ranks.watchdog_seconds=10", "ranks.timeout_seconds=20", "launcher.grace_seconds=1")
    settings = (*RANDOM, *LOCAL, *limits, "name=hung")
    outcome = here(*tiny_there, *settings, fault="stop:1:3")
    assert outcome.status == 0, outcome
    assert "rank 1 has hung and was killed; starting all ranks again (1 of 4)" in told(outcome)
    assert "Traceback" not in outcome.err
    assert_same_runs(straight[1], folder_of("hung"))
    assert read_metrics(folder_of("hung") / "metrics.jsonl")[-1]["step"] == 6
