"""``launcher=local``: one process a rank on this machine, watched by the one that started them."""

import os
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

from mmlm.core.errors import INTERRUPTED, LOST, PROGRAM, STOPPED, USER_ERROR, UserError
from mmlm.core.stop import handled
from mmlm.launch.meeting import ATTEMPT, COMMAND

PARENT_PIPE = "MMLM_PARENT_PIPE"
"""Names a file descriptor that ends when the process that started the ranks does."""


class Local:
    """Starts the ranks of a run as processes of this machine, and again if one of them dies.

    Args:
        processes: ranks; None is one for each accelerator, or 1 without any. From the setting of this name.
        max_restarts: how often all ranks are started again, from the last checkpoint, after one of them died.
        threads: CPU threads a rank; None shares this machine's cores out, and leaves OMP_NUM_THREADS if it is set.
        grace_seconds: how long the other ranks may take to end by themselves once one of them has ended.
    """

    def __init__(
        self,
        processes: int | None = None,
        max_restarts: int = 2,
        threads: int | None = None,
        grace_seconds: float = 30.0,
    ) -> None:
        least = {
            "processes": (processes, 1),
            "launcher.threads": (threads, 1),
            "launcher.max_restarts": (max_restarts, 0),
        }
        for key, (value, limit) in least.items():
            if value is not None and value < limit:
                raise UserError(f"{key}: {value} must be at least {limit}")
        if not grace_seconds > 0:
            raise UserError(f"launcher.grace_seconds: {grace_seconds} must be above 0")
        self.processes = processes or max(1, torch.cuda.device_count())
        self.max_restarts = max_restarts
        self.threads = threads
        self.grace_seconds = grace_seconds

    def __call__(self, folder: Path, command: str) -> int:
        """Trains the prepared run in ``folder``; returns the exit status. ``command`` is what resumes it."""
        # Kept here and not by rank 0, so that it outlives any of them.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        with _passing_on() as ranks:
            for attempt in range(self.max_restarts + 1):
                outcome = _outcome(*self._run(ranks, folder, command, store.port, attempt), ranks.asked)
                if not outcome.again or attempt == self.max_restarts:
                    break
                _say(f"{outcome.fault}; starting all ranks again ({attempt + 1} of {self.max_restarts})")
        if outcome.fault:
            _say(f"{outcome.fault}; what was saved is intact, go on with: {command}")
        return outcome.status

    def _run(
        self, ranks: "_Ranks", folder: Path, command: str, port: int, attempt: int
    ) -> tuple[Mapping[int, int], Sequence[int]]:
        """One attempt: the exit statuses of the ranks that ended by themselves, and which others had to be killed."""
        ours, theirs = os.pipe()
        ranks.processes.clear()
        try:
            for rank in range(self.processes):
                environment = self._environment(rank, port, attempt, command) | {PARENT_PIPE: str(ours)}
                arguments = [sys.executable, "-m", "mmlm.worker", str(folder)]
                # A session of its own: Ctrl-C reaches this process only, which passes it on once.
                process = subprocess.Popen(arguments, env=environment, pass_fds=(ours,), start_new_session=True)
                ranks.processes.append(process)
            if ranks.asked is not None:  # it came while they were being started
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
        share = max(1, (os.cpu_count() or 1) // self.processes)
        if self.threads is not None or "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(self.threads or share)
        return environment


@dataclass
class _Ranks:
    """The processes of an attempt, and what they were asked for."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: str | None = None
    """The first signal that asked to stop, such as ``SIGTERM``."""

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


@contextmanager
def _passing_on() -> Iterator[_Ranks]:
    """Every signal that asks to stop goes to all ranks, as often as it comes."""
    ranks = _Ranks()

    def on_signal(number: int, frame: FrameType | None) -> None:
        ranks.asked = ranks.asked or signal.Signals(number).name
        # What does not train yet ends by SIGTERM at once, and by SIGINT with a traceback.
        ranks.send(signal.SIGTERM if number == signal.SIGINT else number)

    with handled(on_signal):
        yield ranks


def _wait(ranks: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    """Until all have ended, or ``grace_seconds`` after one has ended badly."""
    limit = float("inf")
    while time.monotonic() < limit and any(process.poll() is None for process in ranks):
        if limit == float("inf") and any(process.poll() not in (None, 0) for process in ranks):
            limit = time.monotonic() + grace_seconds
        time.sleep(0.05)


@dataclass(frozen=True)
class _Outcome:
    """What an attempt came to."""

    status: int
    fault: str = ""
    """What went wrong, unless a rank has said it."""
    again: bool = False
    """Whether another attempt may come to something else."""


def _outcome(ended: Mapping[int, int], hung: Sequence[int], asked: str | None) -> _Outcome:
    """Which of the ranks decides, for most of them only end because another one has.

    Args:
        ended: exit status of each rank that ended by itself; negative: the signal that ended it.
        hung: ranks that did not.
        asked: the signal that asked to stop, if one did.
    """
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
    if asked is not None or INTERRUPTED in statuses:
        return _Outcome(INTERRUPTED, f"ended by {asked or 'a second signal'}")
    if killed:
        return _Outcome(1, f"rank {killed[0]} was ended by {signal.Signals(-ended[killed[0]]).name}", again=True)
    if hung:
        return _Outcome(1, f"rank {hung[0]} has hung and was killed", again=True)
    return _Outcome(1, "the ranks have lost each other", again=True)


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
