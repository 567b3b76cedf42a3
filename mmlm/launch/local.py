"""``launcher=local``: one process per rank on this machine, watched and restarted by the process that started them."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from mmlm.core.errors import INTERRUPTED, LOST, PROGRAM, STOPPED, USER_ERROR, ArgumentError, UserError
from mmlm.core.output import to_stderr
from mmlm.core.ranges import check_positive
from mmlm.core.stop import KILLED, handled
from mmlm.launch.launcher import worker_arguments
from mmlm.launch.rank_info import ATTEMPT, COMMAND

PARENT_PIPE = "MMLM_PARENT_PIPE"
"""Environment variable: the descriptor of a pipe that ends when the process that started the ranks does."""

CHECKPOINTS = "checkpoints/step=*"
"""The checkpoints in a run folder, as ``mmlm/record`` and ``mmlm/checkpoints`` name them."""


class Local:
    """Starts the ranks of a run as processes of this machine, and starts all of them again if one dies.

    Args:
        processes: number of ranks; None is one for each accelerator, or 1 without any. The setting ``processes``.
        max_restarts: how often all ranks are started again, from the last checkpoint, after one of them has died; a
            new checkpoint begins the count anew.
        threads: CPU threads per rank; None divides the machine's cores among the ranks, unless OMP_NUM_THREADS is set.
        grace_seconds: how long the other ranks may take to end by themselves after one has failed.
        plugins: packages that the config may name parts of. The setting ``plugins``, which a worker does not take from
            the folder.
    """

    def __init__(
        self,
        processes: int | None = None,
        max_restarts: int = 4,
        threads: int | None = None,
        grace_seconds: float = 30.0,
        plugins: Sequence[str] = (),
    ) -> None:
        if processes is not None and processes < 1:
            raise UserError(f"processes: {processes} must be at least 1")
        for name, value, least in (("threads", threads, 1), ("max_restarts", max_restarts, 0)):
            if value is not None and value < least:
                raise ArgumentError(f"{name}: {value} must be at least {least}")
        check_positive("grace_seconds", grace_seconds)
        self.processes = processes or max(1, torch.cuda.device_count())
        self.max_restarts = max_restarts
        self.threads = threads
        self.grace_seconds = grace_seconds
        self.plugins = plugins

    def __call__(self, folder: Path, command: str) -> int:
        """Trains the prepared run in ``folder``; returns the exit status. See ``Launcher``."""
        # The store is kept by this process, not by rank 0, so that it outlives every rank and serves all attempts.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        # Restarts that help are not counted. What ends the ranks at the same place again and again ends the run.
        tries, reached = 0, _newest(folder)
        with _passing_on() as ranks:
            for attempt in itertools.count():
                # All ranks start again, never one alone: the others' process group has lost a member and cannot go on.
                outcome = _outcome(*self._run(ranks, folder, command, store.port, attempt), ranks.asked)
                before, reached = reached, _newest(folder)
                tries = 0 if reached > before else tries
                if not outcome.again or tries == self.max_restarts:
                    break
                tries += 1
                _say(f"{outcome.fault}; starting all ranks again ({tries} of {self.max_restarts})")
        if outcome.fault:
            _say(f"{outcome.fault}; what was saved is intact, go on with: {command}")
        return outcome.status

    def _run(
        self, ranks: "_Ranks", folder: Path, command: str, port: int, attempt: int
    ) -> tuple[Mapping[int, int], Sequence[int]]:
        """Makes one attempt. Returns the status of each rank that ended by itself, and the ranks that were killed."""
        # Ranks inherit the reading end; nothing is ever written. If this process dies, even by SIGKILL, the writing end
        # closes, and ranks that wait for it notice.
        ours, theirs = os.pipe()
        ranks.processes.clear()
        try:
            for rank in range(self.processes):
                environment = self._environment(rank, port, attempt, command) | {PARENT_PIPE: str(ours)}
                arguments = [sys.executable, "-m", "mmlm.worker", *worker_arguments(folder, self.plugins)]
                # In a session of its own, a rank does not get the terminal's Ctrl-C as well: this process passes it on.
                process = subprocess.Popen(arguments, env=environment, pass_fds=(ours,), start_new_session=True)
                ranks.processes.append(process)
            if ranks.asked is not None:  # the signal came while ranks were being started; the late ones have not got it
                ranks.send(signal.SIGTERM)
            _wait(ranks.processes, self.grace_seconds)
            hung = [rank for rank, process in enumerate(ranks.processes) if process.poll() is None]
            ended = {rank: process.returncode for rank, process in enumerate(ranks.processes) if rank not in hung}
        finally:
            for process in ranks.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(ours)
            os.close(theirs)
        return ended, hung

    def _environment(self, rank: int, port: int, attempt: int, command: str) -> dict[str, str]:
        """The environment variables of a rank: torchrun's, and our own for the attempt and the command."""
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            ATTEMPT: str(attempt),
            COMMAND: command,
        }
        # Without a limit each rank would use every core, and they would get in each other's way.
        share = max(1, (os.cpu_count() or 1) // self.processes)
        if self.threads is not None or "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(self.threads or share)
        return environment


@dataclass
class _Ranks:
    """The processes of an attempt, and the signal that asked them to stop."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: str | None = None
    """The first signal that asked this process to stop, such as ``SIGTERM``; None before that."""

    def send(self, number: int) -> None:
        """Sends a signal to the processes that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


@contextmanager
def _passing_on() -> Iterator[_Ranks]:
    """Context in which every signal that asks to stop is passed on to all ranks of the yielded attempt."""
    ranks = _Ranks()

    def on_signal(number: int, frame: FrameType | None) -> None:
        ranks.asked = ranks.asked or signal.Signals(number).name
        # SIGTERM for Ctrl-C: a rank that does not train yet has no handler, and SIGINT would end it with a traceback.
        ranks.send(signal.SIGTERM if number == signal.SIGINT else number)

    with handled(on_signal):
        yield ranks


def _newest(folder: Path) -> int:
    """The step of the newest checkpoint of a run, damaged or not; -1 without any."""
    names = (re.fullmatch(r"step=(\d+)", path.name) for path in folder.glob(CHECKPOINTS))
    return max((int(name.group(1)) for name in names if name), default=-1)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    """Waits until all ranks have ended, but at most ``grace_seconds`` after one has ended with a failure."""
    limit = float("inf")
    while time.monotonic() < limit and any(process.poll() is None for process in ranks):
        # The first failure sets the limit. The others end by themselves soon, if they do: a lost connection tells them.
        if limit == float("inf") and any(process.poll() not in (None, 0) for process in ranks):
            limit = time.monotonic() + grace_seconds
        time.sleep(0.05)


@dataclass(frozen=True)
class _Outcome:
    """The result of an attempt."""

    status: int
    """Exit status of the launcher, if there is no other attempt."""
    fault: str = ""
    """Description of the failure; empty if there was none, or a rank has told of it."""
    again: bool = False
    """Whether another attempt may succeed."""


def _outcome(ended: Mapping[int, int], hung: Sequence[int], asked: str | None) -> _Outcome:
    """Finds the rank whose end explains those of the others, which mostly end because they have lost that rank.

    Args:
        ended: exit status of each rank that ended by itself; negative: minus the signal that ended it.
        hung: ranks that did not end by themselves and were killed.
        asked: the signal that asked this process to stop, if one came.
    """
    # The order of the questions matters. First the ends that ranks have agreed on; then what a restart would repeat (a
    # user's mistake, a bug); last what it may cure: a rank that was killed, hangs, or has lost another.
    statuses, killed = set(ended.values()), [rank for rank, status in ended.items() if status < 0]
    if not hung and statuses == {0}:
        return _Outcome(0)
    if STOPPED in statuses and (asked is not None or not killed):
        return _Outcome(STOPPED)
    if USER_ERROR in statuses:
        return _Outcome(USER_ERROR)
    bugs = [rank for rank, status in ended.items() if status > 0 and status not in (LOST, STOPPED, INTERRUPTED)]
    if bugs:
        what = f"rank {bugs[0]} ended with status {ended[bugs[0]]}"
        return _Outcome(1, f"{what}, and would again")
    if asked is not None:
        return _Outcome(KILLED + signal.Signals[asked], f"ended by {asked}")
    if INTERRUPTED in statuses:
        return _Outcome(INTERRUPTED, "ended by a second signal")
    if killed:
        return _Outcome(1, f"rank {killed[0]} was ended by {signal.Signals(-ended[killed[0]]).name}", again=True)
    if hung:
        return _Outcome(1, f"rank {hung[0]} has hung and was killed", again=True)
    return _Outcome(1, "the ranks have lost each other", again=True)


def _say(text: str) -> None:
    to_stderr(f"{PROGRAM}: {text}")
