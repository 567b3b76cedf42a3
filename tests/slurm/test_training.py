"""Two ranks on two nodes of a real SLURM: whatever happens to a run, it ends bit-equal to one that was left alone."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mmlm import train
from mmlm.checkpoints.files import folders
from mmlm.record.metrics import read_metrics
from mmlm.record.starts import Doing, begin
from tests.conftest import PLUGIN, TINY, Outcome, write_shapes
from tests.plugin.slow_images import SLOW
from tests.run.test_resume import assert_same_runs
from tests.slurm.local import ROOT, LocalCluster

pytestmark = pytest.mark.slow
STEPS = 60
SAVE_EVERY = 10
LAUNCHED = ("launcher=slurm", "launcher.nodes=2", "launcher.cpus_per_task=1")


@dataclass
class Study:
    """Runs of one experiment that only differ by their name."""

    cluster: LocalCluster
    folder: Path
    train: Callable[..., Outcome]
    """``train(*overrides)``: the command that submits a run, in this process."""

    def slow_down(self, step_seconds: float = 0.5) -> None:
        """From now on a step, of two images on each rank, takes so long: a run can be met on its way."""
        whole = self._slow.with_suffix(".new")
        whole.write_text(str(step_seconds / 2))
        whole.replace(self._slow)

    def speed_up(self) -> None:
        """Lets what is on its way go on at once."""
        self._slow.unlink()

    @property
    def _slow(self) -> Path:
        return self.folder / "images" / SLOW

    def overrides(self, name: str) -> tuple[str, ...]:
        """Of a run."""
        images = self.folder / "images"
        return (
            *TINY,
            "plugins=[slow_images]",
            "data.train._target_=slow_images.SlowImages",
            f"data.train.folder={images}",
            f"data.validation.validation.folder={images}",
            f"runs={self.folder / 'runs'}",
            "decoder.dropout=0.1",
            "train.ema_decay=0.9",
            f"train.steps={STEPS}",
            f"train.save_every={SAVE_EVERY}",
            f"name={name}",
        )

    def run_folder(self, name: str) -> Path:
        """Where a run stands."""
        return self.folder / "runs" / "caption_base" / name / "seed=0"

    def submit(self, name: str, *overrides: str) -> "Job":
        """Submits a run on two nodes."""
        done = self.train(*self.overrides(name), *LAUNCHED, *overrides)
        assert (done.status, done.err) == (0, ""), done
        number = re.search(r"submitted job (\d+):", done.out)
        assert number is not None, done.out
        return Job(self.cluster, number.group(1), self.run_folder(name))


@dataclass
class Job:
    """A run that has been submitted."""

    cluster: LocalCluster
    number: str
    folder: Path

    @property
    def log(self) -> str:
        """What it has said, in all its starts."""
        file = self.folder / "slurm" / f"{self.number}.log"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def wait_for_step(self, step: int) -> None:
        """Until it has been trained for so many steps."""
        file = self.folder / "metrics.jsonl"

        def reached() -> bool:
            assert self.cluster.facts(self.number)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), self.log
            rows = read_metrics(file) if file.exists() else []
            return bool(rows) and rows[-1]["step"] >= step

        self.cluster.wait(reached, f"step {step}", lambda: self.log)

    def wait_for_checkpoint(self) -> None:
        """Until a checkpoint is on the disk, which is written while training goes on, and it is some steps further."""
        self.wait_for_step(SAVE_EVERY + 3)
        root = self.folder / "checkpoints"
        self.cluster.wait(lambda: bool(folders(root)), "no checkpoint is written", lambda: self.log)

    def wait_for_restart(self, number: int) -> None:
        """Until it has been started again for the ``number``-th time, has resumed, and has made a step since then."""

        def goes_on() -> bool:
            resumed = re.findall(r"resumed at step (\d+)", self.log)
            rows = read_metrics(self.folder / "metrics.jsonl")
            return len(resumed) >= number and rows[-1]["step"] > int(resumed[-1])

        self.cluster.wait(goes_on, f"it has not gone on after restart {number}", lambda: self.log)

    def wait_for(self, text: str) -> None:
        """Until it has said something."""
        self.cluster.wait(lambda: text in self.log, f"job {self.number} does not say '{text}'", lambda: self.log)

    def wait_for_success(self) -> None:
        """Until it is done."""
        facts = self.cluster.wait_for_end(self.number)
        assert facts["JobState"] == "COMPLETED", (facts, self.log)
        assert (self.folder / "report.html").is_file()

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        wanted = {
            f"SLURM_JOB_ID={self.number}",
            f"SLURM_PROCID={number}",
            f"SLURM_CONF={self.cluster.folder}/slurm.conf",
        }
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = set((place / "environ").read_text().split("\0"))
                arguments = (place / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if wanted <= words and "mmlm.worker" in arguments and "SLURM_STEP_ID=0" in words:
                return int(place.name)
        raise AssertionError(self.log)


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and room for runs, which lie where all nodes see them."""
    folder = tmp_path_factory.mktemp("study")
    write_shapes(folder / "images")
    return folder


@pytest.fixture
def study(
    cluster: LocalCluster,
    study_folder: Path,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> Study:
    """The study, its images slow."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "HYDRA"))]:
        monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.syspath_prepend(str(PLUGIN))
    study = Study(cluster, study_folder, partial(command, train))
    study.slow_down()
    return study


@pytest.fixture
def straight(study: Study) -> Path:
    """The folder of the run that nothing happened to, trained once."""
    folder = study.run_folder("straight")
    if not (folder / "report.html").exists():
        study.speed_up()
        job = study.submit("straight")
        job.wait_for_success()
        assert "2 by srun (gloo), each 2 examples a step" in job.log
        assert study.cluster.facts(job.number)["NumNodes"] == "2"
        study.slow_down()
    return folder


def finish(study: Study, job: Job, straight: Path) -> None:
    """Lets a job that has been requeued go on, and compares it with the run that was left alone."""
    study.speed_up()
    job.wait_for_success()
    assert re.search(r"resumed at step [1-9]", job.log), job.log
    assert int(study.cluster.facts(job.number)["Restarts"]) >= 1
    assert_same_runs(straight, job.folder, STEPS)


@pytest.mark.thorough
def test_the_time_limit(study, straight):
    """SLURM looks every 30 seconds: the signal comes 30 to 60 seconds after a start, in training or before it."""
    study.slow_down(2.0)
    job = study.submit("time_limit", "launcher.time=00:02:00", "launcher.signal=USR1@60")
    job.wait_for("is requeued (restart")
    assert re.search(r"stopped and saved at step \d+; resume with: sbatch .*/slurm/job\.sh", job.log), job.log
    finish(study, job, straight)


@pytest.mark.thorough
def test_the_time_limit_without_a_signal_before_it(study, straight):
    """SIGTERM comes at the limit, twice to every rank, and SIGKILL somewhat later."""
    study.slow_down(2.0)
    job = study.submit("no_signal", "launcher.time=00:01:00", "launcher.signal=null")
    job.wait_for("is requeued (restart 1)")
    assert "stopped and saved at step" in job.log
    # Time enough for the rest, on a busy machine too.
    study.cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    finish(study, job, straight)


def test_a_partition_of_higher_priority_takes_the_nodes(study, straight):
    job = study.submit("preempted", "launcher.partition=low", "launcher.extra=[--exclusive]")
    job.wait_for_step(3)
    said = study.cluster.run("srun", "--partition=high", "--nodes=2", "--exclusive", "echo", "mine")
    assert said.split() == ["mine", "mine"]
    assert "stopped and saved at step" in job.log
    finish(study, job, straight)


@pytest.mark.thorough
def test_a_step_that_is_told_to_end_is_cancelled_or_loses_a_rank(study, straight):
    """Told to end, the training asks for a restart; after the others, which kill it at once, the batch file does."""
    job = study.submit("lost")
    job.wait_for_checkpoint()
    study.cluster.run("scancel", "--signal=TERM", f"{job.number}.0")
    job.wait_for("is requeued (restart 1)")
    job.wait_for_restart(1)
    study.cluster.run("scancel", f"{job.number}.0")
    job.wait_for_restart(2)
    for rank in (0, 1):
        os.kill(job.rank(rank), signal.SIGKILL)
        job.wait_for_restart(3 + rank)
    finish(study, job, straight)


@pytest.mark.thorough
def test_a_node_that_goes_away_and_returns(study, straight):
    """n1 runs the batch script and rank 0."""
    job = study.submit("node")
    job.wait_for_checkpoint()
    for number, node in enumerate(("n1", "n2"), 1):
        study.cluster.stop_node(node)
        study.cluster.wait(lambda node=node: study.cluster.node_state(node).startswith("down"), f"{node} is not down")
        study.cluster.wait_for_state(job.number, "PENDING")
        study.cluster.start_node(node)
        job.wait_for_restart(number)
    finish(study, job, straight)


@pytest.mark.thorough
def test_a_job_that_is_cancelled_waits_to_be_submitted_again(study, straight):
    job = study.submit("cancelled")
    job.wait_for_checkpoint()
    study.cluster.run("scancel", job.number)
    assert study.cluster.wait_for_end(job.number)["JobState"] == "CANCELLED"
    study.speed_up()
    again = study.cluster.run("sbatch", "--parsable", str(job.folder / "slurm" / "job.sh"))
    second = Job(study.cluster, again, job.folder)
    second.wait_for_success()
    assert re.search(r"resumed at step [1-9]", second.log), second.log
    assert_same_runs(straight, job.folder, STEPS)


def test_a_run_that_is_submitted_twice_is_trained_by_one_job_at_a_time(study):
    first, second = study.submit("twice"), study.submit("twice")
    first.wait_for_step(1)
    assert study.cluster.facts(second.number)["JobState"] == "PENDING"
    study.speed_up()
    first.wait_for_success()
    second.wait_for_success()
    assert "finished already at step" in second.log


def test_a_mistake_that_only_the_job_finds_ends_it(study):
    job = study.submit("mistake", "ranks.backend=nccl")
    facts = study.cluster.wait_for_end(job.number)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), job.log
    assert job.log.count("mmlm: ranks.backend: nccl needs CUDA") == 1


@pytest.mark.thorough
def test_a_crash_at_the_same_step_again_and_again_ends_the_job(study, monkeypatch):
    """Two starts have died there before: those that this job adds are enough."""
    study.speed_up()
    folder = study.run_folder("doomed")
    for _ in range(2):
        folder.mkdir(parents=True, exist_ok=True)
        begin(folder, -1, ["n7"])
        doing = Doing(folder, 0)
        doing.at(3, ["a.png"])
        doing.close()
    monkeypatch.setenv("OWN_FAULT", "die:0:2")
    faulty = ("plugins=[slow_images,own_faults]", "schedule=constant", "schedule._target_=own_faults.FaultySchedule")
    job = study.submit("doomed", *faulty, "schedule.warmup_steps=2")
    facts = study.cluster.wait_for_end(job.number)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "2"), job.log
    told = re.findall(r"mmlm: the last 4 starts of \S+ died at step 3, on the batch .*, on (.*), with no new", job.log)
    assert len(told) == 1, job.log
    assert len(told[0].split(", ")) >= 2, "the node of two starts, and that of the others"


def test_several_seeds_are_several_jobs(study):
    done = study.train(*study.overrides("seeds"), *LAUNCHED, "seed=0,1", "-m")
    assert done.status == 0, done
    assert len(set(re.findall(r"submitted job (\d+):", done.out))) == 2
    for seed in range(2):
        assert (study.folder / "runs" / "caption_base" / "seeds" / f"seed={seed}" / "slurm" / "job.sh").is_file()


# The scripts that a user submits by hand


def batch(study: Study, tmp_path: Path, script: str, *arguments: str) -> str:
    """Submits one of ``slurm/*.sbatch``, logging to ``tmp_path``; the job's number."""
    options = ("--parsable", f"--output={tmp_path}/%x.log", "--mem=0", f"--chdir={ROOT}")
    environment = {**study.cluster.environment, "PYTHON": sys.executable}
    command = ["sbatch", *options, str(ROOT / "slurm" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_single_node_script(study, tmp_path):
    study.speed_up()
    job = batch(study, tmp_path, "single_node.sbatch", *study.overrides("single_node"), "train.steps=2")
    assert study.cluster.wait_for_end(job)["JobState"] == "COMPLETED", (tmp_path / "mmlm.log").read_text()
    assert (study.run_folder("single_node") / "report.html").is_file()


def test_multi_node_script(study, tmp_path):
    study.speed_up()
    job = batch(study, tmp_path, "multi_node.sbatch", *study.overrides("multi_node"), "train.steps=2")
    log = tmp_path / "mmlm.log"
    assert study.cluster.wait_for_end(job)["JobState"] == "COMPLETED", log.read_text()
    assert "2 by srun (gloo), each 2 examples a step" in log.read_text()
    assert (study.run_folder("multi_node") / "report.html").is_file()


def test_requeue_script(study, tmp_path):
    job = batch(study, tmp_path, "requeue.sbatch", *study.overrides("requeue"))
    log = tmp_path / "mmlm.log"
    study.cluster.wait_for_text(study.run_folder("requeue") / "metrics.jsonl", "\n", times=3)
    study.cluster.run("scancel", "--signal=USR1", f"{job}.0")
    study.cluster.wait_for_text(log, f"job {job} is requeued (restart 1)")
    study.speed_up()
    assert study.cluster.wait_for_end(job)["JobState"] == "COMPLETED", log.read_text()
    assert "restart 1" in log.read_text()
    assert re.search(r"resumed at step [1-9]", log.read_text())


def test_array_script(study, tmp_path):
    study.speed_up()
    runs = tmp_path / "runs.txt"
    lines = [shlex.join([*study.overrides("array"), f"train.steps={steps}", f"seed={steps}"]) for steps in (1, 2)]
    runs.write_text("# a comment\n" + "\n\n".join(lines) + "\n")
    job = batch(study, tmp_path, "array_sweep.sbatch", str(runs))
    for task in range(2):
        facts = study.cluster.wait_for_end(f"{job}_{task}")
        assert facts["JobState"] == "COMPLETED", (tmp_path / "mmlm.log").read_text()
        assert (study.run_folder("array").parent / f"seed={task + 1}" / "report.html").is_file()
