"""launcher=slurm without a cluster: what the batch file says, and what is refused."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmlm.core.errors import UserError
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_file import load_config, save_config
from mmlm.experiment.parts import build_part
from mmlm.experiment.run_identity import differences, identity
from mmlm.launch.slurm import Slurm

RUN = Path("/shared/runs/caption_base/1a2b/seed=0")
TYPED = "python -m mmlm.train experiment=caption_base launcher=slurm"


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_least_that_a_batch_file_says():
    script = Slurm(python="python").script(RUN, TYPED)
    assert directives(script) == [
        '--job-name="caption_base/1a2b/seed=0"',
        f'--output="{RUN}/slurm/%j.log"',
        "--open-mode=append",
        f'--chdir="{Path.cwd()}"',
        "--dependency=singleton",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--signal=USR1@120",
        "--requeue",
    ]
    assert f"\nsrun --kill-on-bad-exit=1 python -m mmlm.worker {RUN}\n" in script
    assert "\nexport MMLM_MAX_RESTARTS=50\n" in script
    assert f"#   sbatch {RUN}/slurm/job.sh\n# Written by: {TYPED}\n" in script
    assert f"\nexport MMLM_COMMAND='sbatch {RUN}/slurm/job.sh'\n" in script


def test_everything_that_can_be_set_stands_in_it():
    launcher = Slurm(
        partition="gpu",
        account="lab",
        qos="long",
        nodes=2,
        tasks_per_node=4,
        gpus_per_node=4,
        cpus_per_task=8,
        mem="64G",
        time="1-12:00:00",
        signal="USR2@300",
        constraint="a100|h100",
        exclude="n[3-4]",
        setup=["module load cuda", "export NCCL_SOCKET_IFNAME=ib0"],
        python="/opt/my python",
        max_restarts=3,
        extra=["--mail-type=END"],
    )
    script = launcher.script(RUN, TYPED)
    assert directives(script)[5:] == [
        "--partition=gpu",
        "--account=lab",
        "--qos=long",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--mem=64G",
        "--time=1-12:00:00",
        "--signal=USR2@300",
        "--constraint=a100|h100",
        "--exclude=n[3-4]",
        "--requeue",
        "--mail-type=END",
    ]
    assert "\nexport MMLM_MAX_RESTARTS=3\nmodule load cuda\nexport NCCL_SOCKET_IFNAME=ib0\n" in script
    assert "--cpus-per-task=8 '/opt/my python' -m mmlm.worker" in script


def test_without_requeue_nothing_starts_it_again():
    script = Slurm(requeue=False).script(RUN, TYPED)
    assert "--no-requeue" in directives(script)
    assert "scontrol" not in script
    assert "MMLM_MAX_RESTARTS" not in script
    assert script.rstrip().endswith("exit $status")


@pytest.mark.parametrize("requeue", [True, False])
@pytest.mark.parametrize("check", [("bash", "-n"), ("shellcheck", "--shell=bash")])
def test_it_is_a_program_of_bash(tmp_path, requeue, check):
    if shutil.which(check[0]) is None:
        pytest.skip(f"there is no {check[0]}")
    file = Slurm(requeue=requeue, setup=["echo hello"], cpus_per_task=2).write(tmp_path / "a folder's %j", TYPED)
    done = subprocess.run([*check, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def run_batch_file(
    folder: Path, status: int, state: str = "RUNNING", restarts: str | None = None, requeue: int = 1
) -> tuple[int, str]:
    """The exit status of the batch file, and what it asked of scontrol, with stand-ins for SLURM's commands."""
    shown = f"JobId=7 JobState={state} Requeue={requeue} Restarts=0"
    programs = {
        "srun": f"exit {status}",
        "squeue": f"echo {state}",
        "scontrol": f'if [ "$1" = show ]; then echo "{shown}"; else echo "$@" >> "{folder}/calls"; fi',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    file = Slurm(max_restarts=2).write(folder / "run", TYPED)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = restarts
    done = subprocess.run(["bash", str(file)], env=environment, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    return done.returncode, calls.read_text() if calls.exists() else ""


@pytest.mark.parametrize("status", [0, 2, 75])
def test_what_the_training_has_settled_is_not_started_again(tmp_path, status):
    assert run_batch_file(tmp_path, status) == (status, "")


def test_a_mistake_of_one_rank_is_not_started_again_whatever_srun_made_of_it(tmp_path):
    assert run_batch_file(tmp_path, 143, requeue=0) == (2, "")


@pytest.mark.parametrize("status", [1, 137, 143])
def test_what_was_lost_is_started_again(tmp_path, status):
    assert run_batch_file(tmp_path, status) == (status, "requeue 7\n")
    assert run_batch_file(tmp_path, status, restarts="1") == (status, "requeue 7\n" * 2)
    assert run_batch_file(tmp_path, status, state="SIGNALING") == (status, "requeue 7\n" * 3)


def test_not_beyond_the_limit_and_not_a_cancelled_job(tmp_path):
    assert run_batch_file(tmp_path, 137, restarts="2") == (137, "")
    assert run_batch_file(tmp_path, 137, state="COMPLETING") == (137, "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"processes": 2}, "processes: 2 has no effect with launcher=slurm; set launcher.tasks_per_node"),
        ({"nodes": 0}, "nodes: 0 must be above 0"),
        ({"cpus_per_task": -1}, "cpus_per_task: -1 must be above 0"),
        ({"max_restarts": -1}, "max_restarts: -1 must not be below 0"),
        ({"time": "60"}, "time: '60' must be HH:MM:SS"),
        ({"mem": "lots"}, "mem: 'lots' must be a number with K, M, G or T"),
        ({"signal": "B:USR1@60"}, "signal: 'B:USR1@60' must be a signal's name and seconds"),
        ({"partition": "a b"}, "partition: 'a b' must be one word"),
        ({"extra": ["nodes=3"]}, "extra: 'nodes=3' must be an option of sbatch"),
        ({"gpus_per_node": 4}, "tasks_per_node: 1, and gpus_per_node is 4; a task trains on one GPU"),
    ],
)
def test_mistakes_are_told_with_their_key(settings, said):
    with pytest.raises(UserError) as error:
        Slurm(**settings)
    assert str(error.value).startswith(said)


def test_without_sbatch_the_written_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no sbatch on this machine; submit .*/slurm/job\.sh on a login node"):
        Slurm()(tmp_path, TYPED)
    assert (tmp_path / "slurm" / "job.sh").is_file()


def test_what_sbatch_refuses_is_told_in_one_line(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: no such partition' >&2\necho 'sbatch: error: failed' >&2\nexit 1\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        Slurm()(tmp_path, TYPED)
    assert str(error.value) == f"launcher: sbatch refuses {tmp_path}/slurm/job.sh: no such partition; failed"


def test_it_prints_the_job_and_what_to_do_with_it(tmp_path, monkeypatch, capsys):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\nenv > {tmp_path}/environment\necho "$@" > {tmp_path}/arguments\necho "42;cluster"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert Slurm()(tmp_path, TYPED) == 0
    file = tmp_path / "slurm" / "job.sh"
    assert (tmp_path / "arguments").read_text() == f"--parsable {file}\n"
    given = (tmp_path / "environment").read_text()
    assert "SLURM_CONF=/etc/slurm.conf\n" in given
    assert "SLURM_JOB_ID" not in given, "a job around it"
    out = capsys.readouterr().out
    again = f"sbatch {shlex.quote(str(file))}"
    for words in (f"submitted job 42: {file}", "squeue --jobs=42", f"{tmp_path}/slurm/42.log", again):
        assert words in out


def test_where_a_run_is_trained_is_no_part_of_what_it_is(compose, tmp_path):
    alone = check_config(compose("experiment=caption_base"))
    sent = check_config(
        compose("experiment=caption_base", "launcher=slurm", "launcher.nodes=2", "launcher.time=12:00:00")
    )
    assert identity(alone) == identity(sent)
    assert differences(alone, sent) == []
    save_config(sent, tmp_path / "config.yaml")
    launcher = build_part(load_config(tmp_path / "config.yaml").launcher, "launcher")
    assert launcher == Slurm(nodes=2, time="12:00:00")


def test_a_time_that_yaml_would_read_as_a_number_is_refused(compose):
    with pytest.raises(UserError, match=r"launcher\.time: 60 is not a string or null"):
        check_config(compose("experiment=caption_base", "launcher=slurm", "launcher.time=60"))


def test_the_interpreter_that_submits_is_the_one_that_trains():
    assert f"{shlex.quote(sys.executable)} -m mmlm.worker" in Slurm().script(RUN, TYPED)
