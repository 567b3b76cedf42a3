"""Runs of a study on this machine, each in a process of its own: one after the other, or several side by side."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from mmlm.core.stop import handled
from mmlm.launch.rank_info import COMMAND
from mmlm.studies.grid import Run
from mmlm.studies.place import Place, elapsed
from mmlm.studies.progress import Phase, State, state_of, was_stopped, why

_PAUSE = 0.1
"""Seconds between two looks at the processes."""
_LOOK = 1.0
"""Seconds between two looks at runs that another process is busy with."""


@dataclass(frozen=True)
class Outcome:
    """How a command that runs a study has ended."""

    asked: str | None
    """The signal that asked it to stop, if one came."""
    statuses: Mapping[str, int]
    """The exit status of each run that it has started, by label; negative: minus the signal that ended it."""
    changed: bool = False
    """Whether runs were left out because the code had changed meanwhile."""


@dataclass
class _Going:
    """A run that this process has started."""

    run: Run
    process: "subprocess.Popen[bytes]"
    slot: int
    since: float


@dataclass
class Runner:
    """Starts what is not done, and waits for it."""

    place: Place
    processes: int
    code: Callable[[], str]
    """The digest of the code of a run that begins now."""
    tell: Callable[[str], None]
    """Gets a line for each run that begins or ends."""
    show: Callable[[bool], None]
    """Called again and again, to show how far everything is; with True if a run has just ended."""
    devices: int = 0
    """Accelerators, which runs that are side by side share out; 0 without any."""
    any_code: bool = False
    """Whether runs may begin that are of other code than those before them."""
    _going: list[_Going] = field(default_factory=list)
    _asked: str | None = None
    _statuses: dict[str, int] = field(default_factory=dict)

    def run_all(self, runs: Sequence[Run]) -> Outcome:
        """Trains all ``runs`` that are not done, in their order, and returns once they have ended.

        One that fails stops no other. A run that another process is busy with (one whose own study was killed) takes
        up one of the ``processes`` until it has ended, and is then looked at again. A signal that asks to stop is
        handed on to what runs, which saves; nothing else is started. Nor is anything once the code has changed.
        """
        waiting, changed = list(runs), False
        looked, busy, code = 0.0, 0, self.code()
        with handled(self._on_signal):
            while waiting or self._going:
                ended = self._reap()
                if self._asked is not None or changed:
                    waiting = []
                elif len(self._going) < self.processes and time.monotonic() - looked > (_LOOK if busy else 0):
                    states = {run.label: state_of(run, self.place, {}) for run in waiting}
                    waiting = [run for run in waiting if states[run.label].phase is not Phase.done]
                    busy = sum(states[run.label].phase is Phase.running for run in waiting)
                    looked = time.monotonic()
                    while len(self._going) + busy < self.processes:
                        chosen = next((run for run in waiting if states[run.label].phase is not Phase.running), None)
                        changed = chosen is not None and self.code() != code and not self.any_code
                        if chosen is None or changed:
                            break
                        waiting.remove(chosen)
                        self._start(chosen, states[chosen.label])
                self.show(ended)
                time.sleep(_PAUSE)
        return Outcome(self._asked, self._statuses, changed)

    def _start(self, run: Run, before: State) -> None:
        words = [sys.executable, "-m", "mmlm.train", *run.overrides]
        log = self.place.log(run.label)
        log.parent.mkdir(parents=True, exist_ok=True)
        slot = next(n for n in range(self.processes) if all(one.slot != n for one in self._going))
        with log.open("ab") as output:
            head = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(['python', *words[1:]])}\n"
            output.write(head.encode())
            output.flush()
            self.place.forget_end(run.label)
            process = self._popen(words, output, slot)
        self._going.append(_Going(run, process, slot, time.time()))
        if self._asked is not None:  # the signal came while the process was being started
            process.send_signal(signal.SIGTERM)
        self.place.began(run.label, self.code(), process.pid)
        how = f", from step {before.step}" if before.step else ""
        self.tell(f"{run.words}: begins{how}; log: {log}")

    def _popen(self, words: Sequence[str], output: IO[bytes], slot: int) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA", COMMAND))}
        share = max(1, (os.cpu_count() or 1) // self.processes)
        environment.setdefault("OMP_NUM_THREADS", str(share))
        if self.devices > 1 and self.processes > 1:
            given = environment.get("CUDA_VISIBLE_DEVICES")
            names = given.split(",") if given else [str(number) for number in range(self.devices)]
            environment["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
        # In a session of its own, a run does not get the terminal's Ctrl-C as well: this process hands it on. Its
        # output goes to a file, so that it goes on if this process is killed.
        return subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )

    def _reap(self) -> bool:
        """Notes the runs that have ended; whether any has."""
        over = [one for one in self._going if one.process.poll() is not None]
        for one in over:
            self._going.remove(one)
            status = one.process.returncode
            self.place.ended(one.run.label, status)
            self._statuses[one.run.label] = status
            said = "done"
            if was_stopped(status):
                said = "stopped and saved" if one.run.folder.exists() else "stopped"
            elif status:
                said = f"failed: {why(status, self.place.last_words(one.run.label))}"
            self.tell(f"{one.run.words}: {said}, after {elapsed(one.since)}")
        return bool(over)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or signal.Signals(number).name
        for one in self._going:
            if one.process.poll() is None:
                # SIGTERM for Ctrl-C: one that does not train yet would end by SIGINT with a traceback.
                one.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)


def failures(outcome: Outcome) -> int:
    """The exit status of a study whose runs have ended: 0, or that of the first that failed."""
    failed = [status for status in outcome.statuses.values() if status and not was_stopped(status)]
    return 0 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]
