"""The batch file of a job array, and what is known of its tasks. A real SLURM runs one in tests/slurm."""

import json
import os
import shlex
import subprocess

import pytest

from mmlm.core.errors import UserError
from mmlm.launch.slurm import Slurm
from mmlm.studies.array import jobs_of, submit_array
from mmlm.studies.grid import Run

HOSTILE = 'data.path=it\'s a "$(touch pwned)" folder; `x` \\ 100%'


@pytest.fixture
def slurm_there(tmp_path, monkeypatch):
    """``sbatch`` and ``squeue`` that answer from files; returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answer in (("sbatch", "7;cluster"), ("squeue", "7_0 RUNNING\n7_1 PENDING\n8_0 RUNNING")):
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\nprintf "{answer}\\n"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def some_runs(tmp_path):
    return [Run("mlp", seed, ("experiment=x", HOSTILE, f"seed={seed}"), tmp_path / str(seed), 10) for seed in (0, 1)]


def test_an_array_is_submitted_with_a_limit_and_what_was_asked_for(slurm_there, place, some_runs):
    place.began(some_runs[0].label, "before", pid=1)
    place.ended(some_runs[0].label, 2)
    slurm = Slurm(partition="gpu", cpus_per_task=4, mem="8G", time="01:00:00", setup=["module load cuda"])
    assert submit_array(place, some_runs, slurm, 4, "code", "python -m mmlm.study small") == "7"
    file = place.folder / "slurm" / "array-1.sh"
    assert (slurm_there / "sbatch.asked").read_text().split() == ["--parsable", str(file)]
    lines = file.read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"--array=0-1%4", '--job-name="small"', "--partition=gpu", "--mem=8G", "--requeue"} <= options
    assert f'--output="{place.folder}/slurm/%A_%a.log"' in options
    assert "module load cuda" in lines
    assert any(line.startswith("srun --kill-on-bad-exit=1 --cpus-per-task=4 ") for line in lines)
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert [place.task(run.label).job for run in some_runs] == ["7_0", "7_1"]
    assert place.task(some_runs[0].label).codes == ("before", "code")
    assert place.status(some_runs[0].label) is None
    assert jobs_of(place) == {"7_0": "RUNNING", "7_1": "PENDING"}
    submit_array(place, some_runs, Slurm(requeue=False), None, "code", "x")
    text = (place.folder / "slurm" / "array-2.sh").read_text()
    assert "--array=0-1\n" in text
    assert "--no-requeue" in text
    assert "scontrol requeue" not in text


def test_a_task_gets_its_words_as_they_are(slurm_there, place, some_runs, tmp_path):
    """The shell runs nothing of them, and notes how the task has ended."""
    (slurm_there / "srun").write_text(
        f"""#!/bin/sh
while [ "$1" != mmlm.train ]; do shift; done
shift
printf "%s\\n" "$@" > {tmp_path}/words
exit 2
"""
    )
    (slurm_there / "srun").chmod(0o755)
    submit_array(place, some_runs, Slurm(), 1, "code", "x")
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(
        ["bash", str(place.folder / "slurm" / "array-1.sh")], env=environment, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert (tmp_path / "words").read_text().splitlines() == list(some_runs[1].overrides)
    assert not (tmp_path / "pwned").exists()
    assert (place.status(some_runs[0].label), place.status(some_runs[1].label)) == (None, 2)
    assert shlex.quote(HOSTILE) in (place.folder / "slurm" / "array-1.txt").read_text()


def test_without_slurm_nothing_is_known(place, some_runs, monkeypatch, tmp_path):
    assert jobs_of(place) == {}
    (place.folder / "slurm").mkdir(parents=True)
    (place.folder / "slurm" / "jobs.json").write_text(json.dumps({"7": ["mlp.seed=0"]}))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jobs_of(place) == {}
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        submit_array(place, some_runs, Slurm(), 1, "code", "x")
    assert place.task(some_runs[0].label) is None
