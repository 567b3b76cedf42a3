"""``launcher=slurm``: writes a batch file into the run folder and submits it. It can be edited and submitted again."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmlm.core.errors import ArgumentError, UserError
from mmlm.launch.launcher import worker_arguments
from mmlm.launch.rank_info import COMMAND
from mmlm.launch.requeue import MAX_RESTARTS

FOLDER = "slurm"
"""Folder inside a run folder that holds its batch file and the logs of its jobs."""
JOB_FILE = "job.sh"
"""The batch file in that folder."""
FORMATS = {
    "time": (r"(\d+-)?\d{1,2}:\d\d:\d\d", "HH:MM:SS or D-HH:MM:SS (in a file within quotes)"),
    "mem": (r"\d+[KMGT]?", "a number with K, M, G or T, such as 32G"),
    "signal": (r"[A-Z][A-Z0-9]*@\d+", "a signal's name and seconds, such as USR1@120"),
}
"""Setting -> the regular expression that its values match, and the rule in words for the error message."""

# In both templates, doubled braces are the shell's own.
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
    """The top-level setting ``processes``, which is for one machine only; refused here unless null."""
    plugins: list[str] = field(default_factory=list)
    """The top-level setting ``plugins``, which a worker does not take from the folder."""
    partition: str | None = None
    """Queue of the cluster; null takes the default (``sinfo`` lists them)."""
    account: str | None = None
    """Account that the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    nodes: int = 1
    """Number of machines."""
    tasks_per_node: int = 1
    """Ranks on each node: one for each accelerator, or 1 on CPUs."""
    gpus_per_node: int | None = None
    """Accelerators on each node; null asks for none."""
    cpus_per_task: int | None = None
    """Cores for each rank: 1 and one for each of ``data.workers``; null takes the cluster's default."""
    mem: str | None = None
    """Memory on each node, such as 64G; null takes the cluster's default."""
    time: str | None = None
    """Time limit of one start of the job, HH:MM:SS or D-HH:MM:SS; null takes the partition's."""
    signal: str | None = "USR1@120"
    """NAME@SECONDS: the signal that every rank gets so many seconds before the time limit (SLURM may send it up to 60
    seconds earlier), to save and be requeued. With null, SIGTERM comes at the limit, and SIGKILL KillWait (30) seconds
    later."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: str | None = None
    """Nodes not to use, such as n3 or n[1-3] (a bracket needs quotes on the command line: "'n[1-3]'")."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell, run once on the first node before training: module load, export NCCL_SOCKET_IFNAME=..."""
    python: str | None = None
    """Python interpreter to train with; null takes the one that submits the job."""
    requeue: bool = True
    """Whether the job returns to the queue after a time limit, a preemption or a failure."""
    max_restarts: int = 50
    """Number of restarts, of whatever cause, after which the job does not return to the queue."""
    extra: list[str] = field(default_factory=list)
    """Further options of sbatch, such as --mail-type=END."""

    def __post_init__(self) -> None:
        """Raises UserError for a value that sbatch would refuse or, worse, misunderstand."""
        if self.processes is not None:
            raise UserError(
                f"processes: {self.processes} has no effect with launcher=slurm; set launcher.tasks_per_node"
            )
        for key in ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ArgumentError(f"{key}: {value} must be above 0")
        if self.max_restarts < 0:
            raise ArgumentError(f"max_restarts: {self.max_restarts} must not be below 0")
        for key, (form, rule) in FORMATS.items():
            value = getattr(self, key)
            if value is not None and not re.fullmatch(form, value):
                raise ArgumentError(f"{key}: '{value}' must be {rule}")
        for key in ("partition", "account", "qos", "constraint", "exclude"):
            value = getattr(self, key)
            if value is not None and (not value or re.search(r"\s", value)):
                raise ArgumentError(f"{key}: '{value}' must be one word")
        for option in self.extra:
            if not re.fullmatch(r"--\S+", option):
                raise ArgumentError(f"extra: '{option}' must be an option of sbatch, such as --mail-type=END")
        if self.gpus_per_node not in (None, self.tasks_per_node):
            raise ArgumentError(
                f"tasks_per_node: {self.tasks_per_node}, and gpus_per_node is {self.gpus_per_node}; a task "
                "trains on one GPU: give both the same number"
            )

    def __call__(self, folder: Path, command: str) -> int:
        """Writes the batch file of the run folder, submits it, prints how to follow the job, and returns 0 at once.

        The file mentions ``command``, which would write it anew. Raises UserError, which names the written file, if
        there is no ``sbatch`` or if ``sbatch`` refuses.
        """
        file = self.write(folder, command)
        job = submit(file)
        log = file.parent / f"{job}.log"
        print(f"submitted job {job}: {file}")
        print(f"  watch:  squeue --jobs={job}    tail -F {shlex.quote(str(log))}")
        print(f"  stop:   scancel {job}")
        print(f"  again:  sbatch {shlex.quote(str(file))}    (goes on from the last checkpoint)")
        return 0

    def write(self, folder: Path, command: str) -> Path:
        """Writes ``slurm/job.sh`` into the run folder; returns its absolute path. The job's logs go next to it."""
        place = folder.resolve() / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        file = place / JOB_FILE
        file.write_text(self.script(folder.resolve(), command), encoding="utf-8")
        return file

    def script(self, folder: Path, command: str) -> str:
        """The text of the batch file for the prepared run in ``folder`` (an absolute path)."""
        file = shlex.quote(str(folder / FOLDER / JOB_FILE))
        before = [f"export {COMMAND}={shlex.quote(f'sbatch {file}')}"]
        if self.requeue:
            before.append(f"export {MAX_RESTARTS}={self.max_restarts}")
        python = shlex.quote(self.python or sys.executable)
        worker = shlex.join(worker_arguments(folder, self.plugins))
        # Repeated for srun, which since SLURM 22.05 does not take this option over from the job.
        cpus = f" --cpus-per-task={self.cpus_per_task}" if self.cpus_per_task is not None else ""
        return SCRIPT.format(
            name="/".join(folder.parts[-3:]),
            file=file,
            command=command.replace("\n", " "),
            options="\n".join(f"#SBATCH {option}" for option in self._options(folder)),
            before="".join(f"{line}\n" for line in [*before, *self.setup]),
            # --kill-on-bad-exit: when one rank fails, SLURM ends the others, which would wait for it until a timeout.
            step=f"srun --kill-on-bad-exit=1{cpus} {python} -m mmlm.worker {worker}",
            end=RESTART.format(limit=MAX_RESTARTS) if self.requeue else "# Not requeued, whatever the status.",
        )

    def _options(self, folder: Path) -> list[str]:
        """The options of sbatch, which head the batch file."""
        name = "/".join(folder.parts[-3:])
        return [
            f'--job-name="{name}"',
            f'--output="{escaped(folder / FOLDER)}/%j.log"',
            "--open-mode=append",
            f'--chdir="{Path.cwd()}"',
            # Jobs of one name run one after the other, so that a run submitted twice is not trained by two at once.
            "--dependency=singleton",
            *self.asked_for(),
        ]

    def asked_for(self) -> list[str]:
        """The options of sbatch for what the settings ask for: nodes, time, whether the job may be requeued."""
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
            *(f"--{key}={value}" for key, value in given.items() if value is not None),
            "--requeue" if self.requeue else "--no-requeue",
            *self.extra,
        ]


def escaped(folder: Path) -> str:
    """A folder in the name of an output file, where sbatch replaces patterns such as %j (the job's number)."""
    return str(folder).replace("%", "%%")


def submit(file: Path) -> str:
    """Submits a batch file; returns the number of the job. Raises UserError if there is no sbatch or it refuses."""
    # Inside of another job (salloc, a batch script), its SLURM_* variables would override the options in the file.
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
