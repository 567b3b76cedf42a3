"""``launcher=slurm``: a batch file in the run folder that anyone can read, edit and submit again; submits it."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.launch.meeting import COMMAND
from mmlm.launch.requeue import MAX_RESTARTS

FOLDER = "slurm"
"""Folder of a run that holds its batch file and the logs of its jobs."""
JOB_FILE = "job.sh"
FORMATS = {
    "time": (r"(\d+-)?\d{1,2}:\d\d:\d\d", "HH:MM:SS or D-HH:MM:SS (in a file within quotes)"),
    "mem": (r"\d+[KMGT]?", "a number with K, M, G or T, such as 32G"),
    "signal": (r"[A-Z][A-Z0-9]*@\d+", "a signal's name and seconds, such as USR1@120"),
}
"""Settings of a form of their own: what they match, and what to say of it."""

SCRIPT = """\
#!/bin/bash
# Trains {name}. To go on from its last checkpoint, or after editing this file:
#   sbatch {file}
# Written by: {command}
{options}

{before}echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${{SLURM_RESTART_COUNT:-0}}, $(date)"
{step}
status=$?

{end}
exit $status
"""
RESTART = """\
# 0 done. 2 a mistake, which a restart would repeat. 75 stopped and saved: training has asked for the restart itself.
case $status in 0 | 2 | 75) exit $status ;; esac
# A mistake that one rank found and told above, whereupon srun ended the others and returns their status.
if scontrol show job "$SLURM_JOB_ID" --oneliner | grep -q ' Requeue=0 '; then exit 2; fi
# Anything else is a process or a node that was lost: again, from the last checkpoint, unless the job was cancelled.
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge "${limit}" ]; then
    echo "status $status; not requeued: restarted ${{SLURM_RESTART_COUNT:-0}} times already" >&2
elif squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T | grep -qE '^(RUNNING|SIGNALING)$'; then
    echo "status $status; requeued" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi"""


@dataclass
class Slurm:
    """Trains a prepared run folder as a job of a SLURM cluster: one ``srun`` task, which is one rank, per accelerator.

    The run folder and the code have to lie where every node of the cluster sees them.
    """

    processes: int | None = None
    """The setting of this name, which is for one machine: to be refused."""
    partition: str | None = None
    """Queue to wait in; null takes the cluster's default (``sinfo`` lists them)."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    nodes: int = 1
    """Machines."""
    tasks_per_node: int = 1
    """Ranks on each node: its accelerators, or 1 on CPUs."""
    gpus_per_node: int | None = None
    """Accelerators of each node; null asks for none."""
    cpus_per_task: int | None = None
    """Cores of each rank: 1 and one for each of ``data.workers``; null takes the cluster's default."""
    mem: str | None = None
    """Memory of each node, such as 64G; null takes the cluster's default."""
    time: str | None = None
    """Time limit of one start of the job, HH:MM:SS or D-HH:MM:SS; null takes the partition's."""
    signal: str | None = "USR1@120"
    """Signal and how many seconds before the time limit every rank gets it, to save and be requeued (SLURM may send it
    up to 60 seconds earlier). Null sends none: SIGTERM comes at the limit, and SIGKILL KillWait (30) seconds later."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: str | None = None
    """Nodes not to use, such as n3 or n[1-3] (a bracket needs quotes on the command line: "'n[1-3]'")."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell run once on the first node before training: module load, export NCCL_SOCKET_IFNAME=..."""
    python: str | None = None
    """Interpreter to train with; null takes the one that submits."""
    requeue: bool = True
    """Whether the job goes back into the queue after a time limit, a preemption or a failure."""
    max_restarts: int = 50
    """Restarts, of whatever cause, after which it no longer does."""
    extra: list[str] = field(default_factory=list)
    """Further options of sbatch, such as --mail-type=END."""

    def __post_init__(self) -> None:
        """Raises UserError for a value that sbatch would refuse, or worse, would understand differently."""
        if self.processes is not None:
            raise UserError(
                f"processes: {self.processes} has no effect with launcher=slurm; set launcher.tasks_per_node"
            )
        for key in ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"launcher.{key}: {value} must be above 0")
        if self.max_restarts < 0:
            raise UserError(f"launcher.max_restarts: {self.max_restarts} must not be below 0")
        for key, (form, rule) in FORMATS.items():
            value = getattr(self, key)
            if value is not None and not re.fullmatch(form, value):
                raise UserError(f"launcher.{key}: '{value}' must be {rule}")
        for key in ("partition", "account", "qos", "constraint", "exclude"):
            value = getattr(self, key)
            if value is not None and (not value or re.search(r"\s", value)):
                raise UserError(f"launcher.{key}: '{value}' must be one word")
        for option in self.extra:
            if not re.fullmatch(r"--\S+", option):
                raise UserError(f"launcher.extra: '{option}' must be an option of sbatch, such as --mail-type=END")
        if self.gpus_per_node not in (None, self.tasks_per_node):
            raise UserError(
                f"launcher.tasks_per_node: {self.tasks_per_node}, and gpus_per_node is {self.gpus_per_node}; a task "
                "trains on one GPU: give both the same number"
            )

    def __call__(self, folder: Path, command: str) -> int:
        """Writes and submits the batch file of the run folder, says how to follow it, and returns 0 at once.

        ``command``, which writes the file anew, is told in it. Raises UserError, which names the written file, where
        there is no ``sbatch`` or it refuses.
        """
        file = self.write(folder, command)
        job = _submit(file)
        log = file.parent / f"{job}.log"
        print(f"submitted job {job}: {file}")
        print(f"  watch:  squeue --jobs={job}    tail -F {shlex.quote(str(log))}")
        print(f"  stop:   scancel {job}")
        print(f"  again:  sbatch {shlex.quote(str(file))}    (goes on from the last checkpoint)")
        return 0

    def write(self, folder: Path, command: str) -> Path:
        """Writes ``slurm/job.sh`` of the run folder; its absolute path. The job's logs go next to it."""
        place = folder.resolve() / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        file = place / JOB_FILE
        file.write_text(self.script(folder.resolve(), command), encoding="utf-8")
        return file

    def script(self, folder: Path, command: str) -> str:
        """The text of the batch file for a run folder (absolute path) that ``command`` has prepared."""
        file = shlex.quote(str(folder / FOLDER / JOB_FILE))
        before = [f"export {COMMAND}={shlex.quote(f'sbatch {file}')}"]
        if self.requeue:
            before.append(f"export {MAX_RESTARTS}={self.max_restarts}")
        python = shlex.quote(self.python or sys.executable)
        # Since SLURM 22.05 srun does not take this from the job.
        cpus = f" --cpus-per-task={self.cpus_per_task}" if self.cpus_per_task is not None else ""
        return SCRIPT.format(
            name="/".join(folder.parts[-3:]),
            file=file,
            command=command.replace("\n", " "),
            options="\n".join(f"#SBATCH {option}" for option in self._options(folder)),
            before="".join(f"{line}\n" for line in [*before, *self.setup]),
            # One rank that ends badly ends all of them: the others would wait for it until a timeout.
            step=f"srun --kill-on-bad-exit=1{cpus} {python} -m mmlm.worker {shlex.quote(str(folder))}",
            end=RESTART.format(limit=MAX_RESTARTS) if self.requeue else "# Not requeued, whatever the status.",
        )

    def _options(self, folder: Path) -> list[str]:
        # A percent sign begins a pattern in the names of output files.
        log = str(folder / FOLDER).replace("%", "%%")
        name = "/".join(folder.parts[-3:])
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.mem,
            "time": self.time,
            "signal": self.signal,
            "constraint": self.constraint,
            "exclude": self.exclude,
        }
        return [
            f'--job-name="{name}"',
            f'--output="{log}/%j.log"',
            "--open-mode=append",
            f'--chdir="{Path.cwd()}"',
            # Jobs of one name run one after the other: submitted twice, a run is not trained by two jobs at a time.
            "--dependency=singleton",
            *(f"--{key}={value}" for key, value in given.items() if value is not None),
            "--requeue" if self.requeue else "--no-requeue",
            *self.extra,
        ]


def _submit(file: Path) -> str:
    """The number of the job. Raises UserError."""
    # What a surrounding job has set (salloc, another batch script) would override the file.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    command = ["sbatch", "--parsable", str(file)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError:
        raise UserError(
            f"launcher: there is no sbatch on this machine; submit {file} on a login node of the cluster, or use "
            "launcher=local"
        ) from None
    if done.returncode != 0:
        said = "; ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.strip().splitlines())
        raise UserError(f"launcher: sbatch refuses {file}: {said}")
    return done.stdout.strip().split(";")[0]
