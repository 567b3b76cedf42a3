"""mmlm.launch.requeue in jobs of a real SLURM: what is started again, and what is not."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from mmlm.launch.requeue import forbid_requeue, in_step, requeue

COUNTING = """
import os, pathlib, sys
from mmlm.launch.requeue import in_step, requeue
file = pathlib.Path(sys.argv[1] + os.environ.get("SLURM_ARRAY_TASK_ID", ""))
count = int(file.read_text()) if file.exists() else 0
print("start", os.environ.get("SLURM_RESTART_COUNT", "0"), "count", count, "in step", in_step(), flush=True)
if count == int(sys.argv[2]):
    sys.exit(0)
file.write_text(str(count + 1))
requeue(lambda line: print(line, flush=True))
sys.exit(75)
"""
"""Stands for a training that saves a counter (file, end) and asks for a restart."""
STOPPING = """
import signal, sys, time
from mmlm.launch.requeue import requeue
def stop(number, frame):
    for one in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(one, signal.SIG_IGN)
    requeue(lambda line: print(signal.Signals(number).name, line, flush=True))
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(600)
"""
"""Stands for a training that asks for a restart when it gets a signal."""


@pytest.mark.slow
class TestInJobs:
    def test_a_job_that_saves_and_requeues_goes_on(self, cluster, tmp_path):
        job = cluster.submit(tmp_path, f"srun {cluster.python(COUNTING, 'counter', '2')}")
        assert cluster.wait_for_end(job)["JobState"] == "COMPLETED"
        log = (tmp_path / "log").read_text()
        assert [line for line in log.splitlines() if line.startswith("start")] == [
            f"start {n} count {n} in step True" for n in range(3)
        ]
        assert f"job {job} is requeued (restart 1) and goes on when it is its turn" in log
        assert cluster.facts(job)["Restarts"] == "2"

    def test_each_task_of_an_array_is_requeued_on_its_own(self, cluster, tmp_path):
        command = cluster.python(COUNTING, "counter")
        job = cluster.submit(tmp_path, f"srun {command} $SLURM_ARRAY_TASK_ID", "--array=0-1")
        for task, restarts in (("0", "0"), ("1", "1")):
            facts = cluster.wait_for_end(f"{job}_{task}")
            assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", restarts)

    def test_no_more_restarts_than_allowed(self, cluster, tmp_path):
        script = f"export MMLM_MAX_RESTARTS=1\nsrun {cluster.python(COUNTING, 'counter', '9')}"
        job = cluster.submit(tmp_path, script)
        facts = cluster.wait_for_end(job)
        assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "1")
        assert "it was restarted 1 times, and MMLM_MAX_RESTARTS is 1" in (tmp_path / "log").read_text()

    def test_a_job_that_may_not_be_requeued_says_so(self, cluster, tmp_path):
        job = cluster.submit(tmp_path, f"srun {cluster.python(COUNTING, 'counter', '9')}", "--no-requeue")
        assert cluster.wait_for_end(job)["JobState"] == "FAILED"
        assert "it was submitted without --requeue" in (tmp_path / "log").read_text()

    @pytest.mark.parametrize("options", [(), ("--full",)])
    def test_a_cancelled_job_stays_cancelled(self, cluster, tmp_path, options):
        job = cluster.submit(tmp_path, f"srun {cluster.python(STOPPING)}")
        cluster.wait_for_text(tmp_path / "log", "ready")
        cluster.run("scancel", *options, job)
        cluster.wait_for_text(tmp_path / "log", "SIGTERM")
        assert cluster.wait_for_end(job)["JobState"] == "CANCELLED"
        log = (tmp_path / "log").read_text()
        assert f"job {job} is not requeued: SLURM is ending it (state COMPLETING), as after scancel" in log
        assert log.count("ready") == 1

    def test_a_step_that_is_told_to_end_is_started_again(self, cluster, tmp_path):
        """Without a signal named, scancel kills a step at once; the batch file of launcher=slurm looks after that."""
        job = cluster.submit(tmp_path, f"srun {cluster.python(STOPPING)}")
        cluster.wait_for_text(tmp_path / "log", "ready")
        cluster.run("scancel", "--signal=TERM", f"{job}.0")
        cluster.wait_for_text(tmp_path / "log", "ready", times=2)
        assert f"SIGTERM job {job} is requeued (restart 1)" in (tmp_path / "log").read_text()

    def test_a_job_of_a_lower_partition_makes_room_and_comes_back(self, cluster, tmp_path):
        options = ("--partition=low", "--nodes=2", "--exclusive")
        job = cluster.submit(tmp_path, f"srun {cluster.python(STOPPING)}", *options)
        cluster.wait_for_text(tmp_path / "log", "ready", times=2)
        assert (
            cluster.run("srun", "--partition=high", "--nodes=2", "--exclusive", "echo", "high").split() == ["high"] * 2
        )
        cluster.wait_for_text(tmp_path / "log", "ready", times=4)
        assert f"SIGTERM job {job} is requeued (restart 1)" in (tmp_path / "log").read_text()

    @pytest.mark.thorough
    def test_the_signal_before_the_time_limit_gets_to_the_tasks(self, cluster, tmp_path):
        script = f"trap 'echo batch shell' USR1\nsrun {cluster.python(STOPPING)}"
        job = cluster.submit(tmp_path, script, "--time=1", "--signal=USR1@58")
        cluster.wait_for_text(tmp_path / "log", "ready", times=2)
        log = (tmp_path / "log").read_text()
        assert f"SIGUSR1 job {job} is requeued (restart 1)" in log
        assert "batch shell" not in log
        assert cluster.facts(job)["Restarts"] == "1"

    @pytest.mark.thorough
    def test_a_node_that_goes_away_and_returns(self, cluster, tmp_path):
        job = cluster.submit(tmp_path, f"srun {cluster.python(STOPPING)}", "--nodes=2")
        cluster.wait_for_text(tmp_path / "log", "ready", times=2)
        cluster.stop_node("n2")
        cluster.wait(lambda: cluster.node_state("n2").startswith("down"), "n2 is not down")
        cluster.wait_for_state(job, "PENDING")
        cluster.start_node("n2")
        cluster.wait_for_text(tmp_path / "log", "ready", times=4)
        assert cluster.facts(job)["Restarts"] == "1"


# Without a cluster

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


def fake(monkeypatch: pytest.MonkeyPatch, *answers: object) -> list[list[str]]:
    """Lets commands answer with a status and a text, or raise; the commands that were run."""
    asked: list[list[str]] = []
    left = list(answers)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(list(command))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, text = answer
        return subprocess.CompletedProcess(command, status, text, text)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


RUNNING = (
    0,
    "JobId=7 JobName=a b UserId=root(0) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2\n",
)


def asked_for(environment: Mapping[str, str] = STEP) -> tuple[bool, list[str]]:
    """Whether a restart was asked for, and what was told."""
    told: list[str] = []
    return requeue(told.append, environment), told


def test_in_step():
    assert in_step(STEP)
    assert not in_step({"SLURM_JOB_ID": "7"})
    assert not in_step({})


def test_no_job():
    assert asked_for({}) == (False, ["not requeued: this is no SLURM job"])


def test_a_task_of_an_array_goes_by_its_place_in_it(monkeypatch):
    asked = fake(monkeypatch, RUNNING, (0, ""))
    done, told = asked_for({**STEP, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"})
    assert done
    assert told == ["job 7_3 is requeued (restart 3) and goes on when it is its turn"]
    assert [command[-1] for command in asked] == ["--oneliner", "7_3"]


def test_a_running_job_is_requeued(monkeypatch):
    asked = fake(monkeypatch, RUNNING, (0, ""))
    before: list[tuple[str, int]] = []
    assert requeue(lambda line: before.append((line, len(asked))), STEP)
    assert before == [("job 7 is requeued (restart 3) and goes on when it is its turn", 1)]
    assert asked == [["scontrol", "show", "job", "7", "--oneliner"], ["scontrol", "requeue", "7"]]


def test_what_is_not_requeued_in_the_end_gets_a_second_line(monkeypatch):
    fake(monkeypatch, RUNNING, (1, "Job is pending\n"))
    done, (first, second) = asked_for()
    assert not done
    assert first.startswith("job 7 is requeued (restart 3)")
    assert second == "job 7 could not be requeued: 'scontrol requeue 7' failed: Job is pending"


def test_a_job_to_which_a_signal_is_on_its_way_runs(monkeypatch):
    fake(monkeypatch, (0, RUNNING[1].replace("RUNNING", "SIGNALING")), (0, ""))
    assert asked_for()[0]


def test_a_command_that_a_signal_ends_is_run_again(monkeypatch):
    asked = fake(monkeypatch, (-15, ""), RUNNING, (-15, ""), (-15, ""), (0, ""))
    assert asked_for()[0]
    assert len(asked) == 5
    fake(monkeypatch, *[(-15, "")] * 3)
    assert not asked_for()[0]


def test_what_the_time_limit_ends_is_requeued_and_what_else_is_ending_is_not(monkeypatch):
    ending = RUNNING[1].replace("RUNNING", "COMPLETING")
    fake(monkeypatch, (0, ending.replace("Reason=None", "Reason=TimeLimit")), (0, ""))
    assert asked_for()[0]
    for state in ("COMPLETING", "CANCELLED", "PENDING"):
        asked = fake(monkeypatch, (0, RUNNING[1].replace("RUNNING", state)))
        assert f"(state {state})" in asked_for()[1][0]
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (FileNotFoundError(2, "No such file or directory"), "scontrol cannot be run (No such file or directory)"),
        (subprocess.TimeoutExpired(["scontrol"], 60), "gave no answer for 60 seconds"),
        ((1, "slurm_load_jobs error: Invalid job id specified\n"), "failed: slurm_load_jobs error: Invalid job id"),
    ],
)
def test_a_command_that_cannot_answer_is_told_and_not_raised(monkeypatch, answer, said):
    fake(monkeypatch, answer)
    done, (told,) = asked_for()
    assert not done
    assert said in told
    assert "\n" not in told


def test_a_job_of_a_mistake_is_kept_from_being_requeued(monkeypatch):
    asked = fake(monkeypatch, (0, ""), (1, "slurm_update error: Access/permission denied"))
    forbid_requeue(STEP)
    forbid_requeue({**STEP, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"})
    forbid_requeue({})
    assert asked == [["scontrol", "update", f"JobId={job}", "Requeue=0"] for job in ("7", "7_3")]


@pytest.mark.parametrize(("most", "done"), [("3", True), ("2", False), ("x", False)])
def test_the_limit_of_restarts(monkeypatch, most, done):
    fake(monkeypatch, RUNNING, (0, ""))
    assert asked_for({**STEP, "MMLM_MAX_RESTARTS": most})[0] is done


@pytest.mark.slow
def test_it_is_light_to_import():
    """A batch script may call it: no torch."""
    program = "import sys, mmlm.launch.requeue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
