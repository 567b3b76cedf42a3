"""A command as a real process, and all processes that come of it: found by a mark in their environment (Linux)."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import until

ROOT = Path(__file__).parents[2]
_MARK = "MMLM_FAULTS_MARK"


@dataclass(frozen=True)
class Surroundings:
    """In what a command runs."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides those of every command."""
    prefix: Sequence[str] = ()
    """What stands before the command: a program that becomes it in the end."""
    read: bool = False
    """What it prints goes through a pipe that this process could read, and the log has its stderr only."""


class Command:
    """``python -m <arguments>``, running; what it prints goes to ``log``."""

    def __init__(self, arguments: Sequence[str], log: Path, surroundings: Surroundings | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        self.surroundings = surroundings or Surroundings()
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "plugin")))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA", "SLURM"))}
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*self.surroundings.prefix, sys.executable, "-m", *arguments],
                env={
                    **environment,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": path,
                    _MARK: self.mark,
                    **self.surroundings.environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.surroundings.read else file,
                stderr=file,
                cwd=ROOT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process itself has ended, whatever became of those that it started."""
        return self._process.poll() is not None

    def members(self) -> list[int]:
        """The ids of all living processes that came of it, itself first."""
        mark = f"{_MARK}={self.mark}".encode()
        found = [pid for pid in _all_pids() if mark in _read(pid, "environ")]
        return sorted(found, key=lambda pid: (pid != self.pid, pid))

    def ranks(self) -> dict[int, int]:
        """The id of the process of each rank: those that the launcher started, or the process itself without one."""
        started = [pid for pid in self.members() if b"mmlm.worker" in _read(pid, "cmdline")]
        numbers = {_variable(pid, "RANK"): pid for pid in started}
        if numbers:
            return {int(number): pid for number, pid in numbers.items() if number is not None}
        return {} if self.ended or b"launcher=local" in _read(self.pid, "cmdline") else {0: self.pid}

    def data_workers(self) -> list[int]:
        """The ids of the processes that prepare data: what the fork server forked."""
        servers = [pid for pid in self.members() if b"forkserver" in _read(pid, "cmdline")]
        return [pid for pid in servers if _parent(pid) in servers]

    def send(self, number: signal.Signals, pids: Sequence[int] | None = None) -> None:
        """A signal to some of its processes, the command itself if None; those that have ended meanwhile are spared."""
        for pid in [self.pid] if pids is None else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Ends all of its processes at once."""
        self.send(signal.SIGKILL, self.members())

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None if it is still there after so many seconds, and has been killed then."""
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            return None

    def is_gone(self, seconds: float) -> bool:
        """Whether the last of its processes has ended by itself within so many seconds; they are killed if not."""
        if until(lambda: not self.members(), seconds):
            return True
        self.kill()
        until(lambda: not self.members(), seconds)
        return False

    def stop_reading(self) -> None:
        """Closes the pipe of ``Surroundings.read``."""
        if self._process.stdout is not None:
            self._process.stdout.close()

    def output(self) -> str:
        """What it and its processes have printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """A file of /proc; empty for a process that is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _variable(pid: int, name: str) -> str | None:
    for entry in _read(pid, "environ").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == name.encode():
            return value.decode()
    return None


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0
