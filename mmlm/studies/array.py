"""``launcher=slurm`` of a study: its runs as the tasks of one job array, and what SLURM says of them."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmlm.launch.requeue import MAX_RESTARTS
from mmlm.launch.slurm import Slurm, escaped, submit
from mmlm.record.folder import write_whole
from mmlm.studies.grid import Run
from mmlm.studies.place import SLURM, Place, written

JOBS = "jobs.json"
"""The arrays that were submitted: ``{"7": ["mlp.seed=0", ...]}``, the label of each task."""
PATIENCE = 60.0
"""Seconds that squeue may take to answer."""

# Doubled braces are the shell's own.
SCRIPT = """\
#!/bin/bash
# The runs of the study {name}, one a task. Written by: {command}
# Each line of {tasks} is a run: its label, then the words after python -m mmlm.train.
{options}

{before}export {limit}={most}
task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {tasks})
label=${{line%%$'\\t'*}}
# Words as on a command line, quotes included, of which nothing is run.
mapfile -t words < <(xargs printf '%s\\n' <<<"${{line#*$'\\t'}}")
status_file={folder}/"$label".status
rm -f "$status_file"
echo "task $task on $SLURM_JOB_NODELIST, restart ${{SLURM_RESTART_COUNT:-0}}, $(date): $label"
srun --kill-on-bad-exit=1{cpus} --open-mode=append --output={logs}/"$label".log {python} -m mmlm.train "${{words[@]}}"
status=$?
{end}
echo $status > "$status_file"
exit $status
"""
RESTART = """\
# 0 done. 2 a mistake, which a restart would repeat. 75 stopped and saved: training has asked for the restart itself.
# Anything else is a process or a node that was lost: again, from the last checkpoint, unless the task was cancelled.
case $status in
0 | 2 | 75) ;;
*)
    if scontrol show job "$task" --oneliner | grep -q ' Requeue=0 '; then
        status=2
    elif [ "${{SLURM_RESTART_COUNT:-0}}" -lt "${limit}" ] &&
        squeue --noheader --jobs="$task" --format=%T | grep -qE '^(RUNNING|SIGNALING)$'; then
        echo "status $status; requeued" >&2
        scontrol requeue "$task"
    fi
    ;;
esac"""


def submit_array(place: Place, runs: Sequence[Run], slurm: Slurm, at_once: int | None, code: str, command: str) -> str:
    """Submits the runs as one job array, ``at_once`` of them at a time (None: all); returns its number, at once.

    ``command`` is the one that was typed. The study's folder, the runs and the code have to lie where every node sees
    them. Raises UserError if there is no ``sbatch`` or it refuses.
    """
    folder = place.folder.resolve()
    (folder / SLURM).mkdir(parents=True, exist_ok=True)
    (place.log("any").parent).mkdir(parents=True, exist_ok=True)
    number = 1 + max([0, *(int(file.stem.removeprefix("array-")) for file in (folder / SLURM).glob("array-*.sh"))])
    tasks = folder / SLURM / f"array-{number}.txt"
    write_whole(tasks, written([f"{run.label}\t{shlex.join(run.overrides)}" for run in runs]))
    file = tasks.with_suffix(".sh")
    file.write_text(script(folder, tasks, len(runs), slurm, at_once, command), encoding="utf-8")
    for run in runs:  # before a task may begin, and end
        place.forget_end(run.label)
    job = submit(file)
    for index, run in enumerate(runs):
        place.began(run.label, code, job=f"{job}_{index}")
    known = {**_submitted(place), job: [run.label for run in runs]}
    write_whole(folder / SLURM / JOBS, json.dumps(known, indent=1) + "\n")
    return job


def script(folder: Path, tasks: Path, count: int, slurm: Slurm, at_once: int | None, command: str) -> str:
    """The text of the batch file for ``count`` runs in the file ``tasks``; ``folder`` is the study's, absolute."""
    limit = "" if at_once is None else f"%{at_once}"
    options = [
        f'--job-name="{folder.name}"',
        f"--array=0-{count - 1}{limit}",
        f'--output="{escaped(folder / SLURM)}/%A_%a.log"',
        "--open-mode=append",
        f'--chdir="{Path.cwd()}"',
        *slurm.asked_for(),
    ]
    logs = shlex.quote(escaped(folder / "tasks"))
    return SCRIPT.format(
        name=folder.name,
        command=command.replace("\n", " "),
        tasks=shlex.quote(str(tasks)),
        options="\n".join(f"#SBATCH {option}" for option in options),
        before="".join(f"{line}\n" for line in slurm.setup),
        limit=MAX_RESTARTS,
        most=slurm.max_restarts,
        folder=shlex.quote(str(folder / "tasks")),
        logs=logs,
        cpus="" if slurm.cpus_per_task is None else f" --cpus-per-task={slurm.cpus_per_task}",
        python=shlex.quote(slurm.python or sys.executable),
        end=RESTART.format(limit=MAX_RESTARTS) if slurm.requeue else "# Not requeued, whatever the status.",
    )


def jobs_of(place: Place) -> Mapping[str, str]:
    """SLURM's states of the study's tasks that have not ended, such as ``{"7_3": "PENDING"}``.

    Empty where nothing was submitted, or SLURM does not answer: then only files tell.
    """
    numbers = list(_submitted(place))
    if not numbers:
        return {}
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = re.findall(r"^(\d+)_(\d+) (\S+)$", done.stdout, flags=re.MULTILINE)
    return {f"{job}_{index}": state for job, index, state in found if job in numbers}


def _submitted(place: Place) -> dict[str, list[str]]:
    """The labels of the tasks of each array; empty without any, or if the file is damaged."""
    try:
        found = json.loads((place.folder / SLURM / JOBS).read_bytes())
        return {str(job): [str(label) for label in labels] for job, labels in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
