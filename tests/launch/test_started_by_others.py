"""Ranks that torchrun or srun start: one of them composes the run, and it is that of ``launcher=local`` to the bit."""

import re
import socket
import subprocess

import pytest

from tests.conftest import package_frames
from tests.launch.processes import LOCAL, RANDOM, TORCHRUN, Commands, finish, told
from tests.run.test_resume import assert_same_runs

pytestmark = pytest.mark.slow

RESTARTING = TORCHRUN.replace("--standalone", "--standalone --max-restarts 1")


def test_torchrun_trains_the_same_run(straight, ordered, tiny_there, folder_of):
    outcome = ordered.run(TORCHRUN, *tiny_there, *RANDOM, "name=torchrun")
    assert outcome.status == 0, outcome
    assert [len(re.findall(f"step {step}/6 ", outcome.out)) for step in range(1, 7)] == [1] * 6
    assert len(re.findall(r"2 by torchrun \(gloo\), each 2 examples a step", outcome.out)) == 1
    assert_same_runs(straight[1], folder_of("torchrun"))


@pytest.mark.thorough
def test_torchrun_starts_again_after_a_killed_rank(straight, ordered, tiny_there, folder_of):
    # Else torchrun's agent and the first group of processes would share a port, which the second group finds taken.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    settings = (*tiny_there, *RANDOM, "name=restarted")
    saved = folder_of("restarted") / "checkpoints" / "step=000002"
    outcome = ordered.run(RESTARTING, *settings, fault="kill:1:3", after=saved, environment=own_store)
    assert outcome.status == 0, outcome
    assert "resumed at step 2" in outcome.out
    assert_same_runs(straight[1], folder_of("restarted"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.stepz=3",), "train.stepz"),
        (LOCAL, "launcher: this process is one of 2 ranks of torchrun already; use launcher=none"),
        (("seed=0,1", "-m"), "--multirun: several runs cannot share these ranks; start each by itself"),
    ],
)
def test_what_cannot_be_composed_ends_all_ranks_with_one_line(ordered, tiny_there, folder_of, arguments, message):
    outcome = ordered.run(TORCHRUN, *tiny_there, *arguments, "name=refused")
    assert outcome.status != 0
    (line,) = told(outcome)
    assert line.startswith(message)
    assert package_frames(outcome.err) == []
    assert not folder_of("refused").exists()


# Two processes in an environment like that of srun


def start_step(ordered: Commands, *arguments: str, fault: str | None = None) -> list["subprocess.Popen[str]"]:
    """Both tasks of a job step of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": str(port),
    }
    own = [{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    return [ordered.start("mmlm.train", *arguments, environment=step | task, fault=fault) for task in own]


def test_the_tasks_of_srun_train_together(straight, ordered, tiny_there, folder_of):
    first, second = map(finish, start_step(ordered, *tiny_there, *RANDOM, "name=srun"))
    assert (first.status, first.err) == (0, "")
    assert (second.status, second.out, second.err) == (0, "", "")
    assert "2 by srun (gloo), each 2 examples a step" in first.out
    assert_same_runs(straight[1], folder_of("srun"))


def test_what_cannot_be_composed_ends_all_tasks(ordered, tiny_there):
    first, second = map(finish, start_step(ordered, *tiny_there, "train.stepz=3"))
    assert "train.stepz" in first.mistake
    assert (second.status, second.out, second.err) == (2, "", "")
