"""What a training needs to know and do inside a SLURM job: whether it is in one, and how to be started again.

A job that saves and exits with status 0 is COMPLETED to SLURM and never comes back; one that is requeued waits in the
queue under the same number and runs its batch script again (``man scontrol``, requeue).
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

MAX_RESTARTS = "MMLM_MAX_RESTARTS"
"""Environment variable that a batch script may set: restarts after which a job no longer asks for another."""
PATIENCE = 60.0
"""Seconds for one of SLURM's commands to answer; its controller may be restarting."""
TRIES = 3
"""Times that a command is run which a signal ended: what ends a job step is sent to every process of it."""


def in_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of a job step, started by ``srun``."""
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" in environment


def requeue(tell: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> bool:
    """Puts the job that this process runs in back into the queue, after everything has been saved; on one rank only.

    SLURM then ends all of the job's processes, this one too, so other ranks should have nothing left to do. Not done
    for a job that was cancelled, that may not be requeued, or that was restarted ``MMLM_MAX_RESTARTS`` times. Raises
    nothing: a command that is missing or fails is told. Of an array, only this task is requeued.

    Args:
        tell: gets a line for the user, before SLURM is asked: afterwards it could be lost with what prints it. What
            fails then gets a second one.
        environment: that of the process.

    Returns:
        Whether the job is started again by SLURM.
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
    """Lets nobody requeue the job that this process runs in: it would repeat a user's mistake.

    The batch script cannot tell from a status. ``srun --kill-on-bad-exit`` ends the other ranks by a signal, and
    returns the highest status of all (143), not that of the rank which found the mistake (2). Raises nothing.
    """
    job = _job(environment)
    if job is not None:
        with suppress(_CommandError):
            _answer(["scontrol", "update", f"JobId={job}", "Requeue=0"])


def _job(environment: Mapping[str, str]) -> str | None:
    """``7``, or ``7_3`` for task 3 of array 7. The last task of an array has the array's own number for its job, by
    which SLURM would requeue all of them."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return environment.get("SLURM_JOB_ID") if array is None else f"{array}_{task}"


def _facts(shown: str) -> dict[str, str]:
    """``JobState``, ``Reason``, ``Requeue``, ``Restarts`` and the like, of ``scontrol show job``."""
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", shown))


def _hindrance(facts: Mapping[str, str], most: str | None) -> str | None:
    """Why a job must not be requeued; None if it may be."""
    state, reason = facts.get("JobState", "unknown"), facts.get("Reason", "")
    # What ends a job hides its kind in COMPLETING until the last process is gone; only the time limit is named. A
    # cancelled job that is requeued here would run again. A preempted one at its end, SLURM requeues by itself.
    ending = state == "COMPLETING" and reason != "TimeLimit"
    # SIGNALING is a job that runs, while a signal is on its way to it: to one of its nodes, after it has come here.
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
    """A command cannot be run or failed. Never leaves this file."""


def _answer(command: Sequence[str]) -> str:
    """What a command prints. Raises _CommandError."""
    for _ in range(TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except OSError as error:
            raise _CommandError(f"{command[0]} cannot be run ({error.strerror})") from None
        except subprocess.TimeoutExpired:
            raise _CommandError(f"'{' '.join(command)}' gave no answer for {PATIENCE:.0f} seconds") from None
        if done.returncode >= 0:
            break
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise _CommandError(f"'{' '.join(command)}' failed: {said}")
    return done.stdout
