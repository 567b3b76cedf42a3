"""Requeuing a SLURM job from inside: called by a training that has been asked to stop and has saved.

A job that ends with status 0 is COMPLETED to SLURM and never starts again. A job that is requeued waits in the queue
under the same number and runs its batch script again (``man scontrol``, requeue).
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

MAX_RESTARTS = "MMLM_MAX_RESTARTS"
"""Environment variable that a batch script may set: the number of restarts after which a job is not requeued."""
PATIENCE = 60.0
"""Seconds that a command of SLURM may take to answer; the controller may be restarting."""
TRIES = 3
"""How often a command is run that ends by a signal: signals to a job step reach the commands that it runs, too."""


def in_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of a job step, that is, was started by ``srun``."""
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" in environment


def requeue(tell: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> bool:
    """Puts this process's job back into the queue. To be called on one rank, after everything has been saved.

    SLURM then ends all processes of the job, this one too, so other ranks should have nothing left to do. A job is not
    requeued if it was cancelled, if it may not be requeued, or if it was restarted ``MMLM_MAX_RESTARTS`` times. Of an
    array, only this task is requeued. Raises nothing: a command that is missing or fails is reported by ``tell``.

    Args:
        tell: receives a line for the user before SLURM is asked, since SLURM may end the process that prints it. If
            the command then fails, ``tell`` receives a second line.
        environment: environment variables of the process.

    Returns:
        Whether SLURM will start the job again.
    """
    job = _job(environment)
    if job is None:
        tell("not requeued: this is no SLURM job")
        return False
    try:
        facts = _facts(_answer(["scontrol", "show", "job", job, "--oneliner"]))
        hindrance = _hindrance(facts, environment.get(MAX_RESTARTS))
        if hindrance is not None:
            tell(f"job {job} is not requeued: {hindrance}")
            return False
        tell(f"job {job} is requeued (restart {int(facts.get('Restarts', 0)) + 1}) and goes on when it is its turn")
        _answer(["scontrol", "requeue", job])
    except _CommandError as error:
        tell(f"job {job} could not be requeued: {error}")
        return False
    return True


def forbid_requeue(environment: Mapping[str, str] = os.environ) -> None:
    """Marks this process's job as one not to be requeued, after a user's mistake that a restart would repeat.

    The batch script, which restarts failed jobs, cannot recognise a mistake by the exit status: ``srun
    --kill-on-bad-exit`` ends the other ranks by a signal and returns the highest status of all ranks (143), not that of
    the rank that found the mistake (2). Raises nothing.
    """
    job = _job(environment)
    if job is not None:
        with suppress(_CommandError):
            _answer(["scontrol", "update", f"JobId={job}", "Requeue=0"])


def _job(environment: Mapping[str, str]) -> str | None:
    """The name of the job for SLURM's commands: ``7``, or ``7_3`` for task 3 of array 7. None outside of a job.

    SLURM_JOB_ID would not do in an array: for the last task it is the array's own number, by which SLURM requeues all.
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return environment.get("SLURM_JOB_ID") if array is None else f"{array}_{task}"


def _facts(shown: str) -> dict[str, str]:
    """Fields of the output of ``scontrol show job``: ``JobState``, ``Reason``, ``Requeue``, ``Restarts`` and others."""
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", shown))


def _hindrance(facts: Mapping[str, str], most: str | None) -> str | None:
    """The reason why a job must not be requeued; None if it may be. ``most``: the value of ``MMLM_MAX_RESTARTS``."""
    state, reason = facts.get("JobState", "unknown"), facts.get("Reason", "")
    # While a job ends, its state is COMPLETING until the last process is gone, whether it was cancelled, preempted or
    # ran out of time; only the time limit is named, as the reason. A cancelled job must not run again, and a preempted
    # one is requeued by SLURM itself, so a job that is ending is requeued after its time limit only.
    ending = state == "COMPLETING" and reason != "TimeLimit"
    # SIGNALING is a running job some of whose nodes have not yet got the signal that this process has.
    if ending or state not in ("RUNNING", "SIGNALING", "COMPLETING"):
        return f"SLURM is ending it (state {state}), as after scancel"
    if facts.get("Requeue") == "0":
        return "it was submitted without --requeue, or is interactive"
    if most is not None and int(facts.get("Restarts", 0)) >= _whole(most):
        return f"it was restarted {facts['Restarts']} times, and {MAX_RESTARTS} is {most}; submit it again to go on"
    return None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _CommandError(f"{MAX_RESTARTS} is '{text}', and not a whole number") from None


class _CommandError(Exception):
    """A command cannot be run, or has failed. Caught in this file."""


def _answer(command: Sequence[str]) -> str:
    """Runs a command; returns its output. Raises _CommandError."""
    for _ in range(TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except OSError as error:
            raise _CommandError(f"{command[0]} cannot be run ({error.strerror})") from None
        except subprocess.TimeoutExpired:
            raise _CommandError(f"'{' '.join(command)}' gave no answer for {PATIENCE:.0f} seconds") from None
        if done.returncode >= 0:  # negative: ended by a signal, see TRIES
            break
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise _CommandError(f"'{' '.join(command)}' failed: {said}")
    return done.stdout
