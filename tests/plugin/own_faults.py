"""Faults that a test orders: a schedule that does harm at one step of one rank."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from mmlm.optim.schedules import Constant

_PATIENCE = 120.0
"""Seconds for a signal or a file to arrive."""
_LEAPT: list[int] = []
"""Where this process has leapt."""


@dataclass(frozen=True)
class FaultySchedule(Constant):
    """Does what the environment's ``OWN_FAULT=<what>:<rank>:<step>`` says before that step, the first time only.

    It waits until the file or folder ``OWN_FAULT_AFTER`` exists, if that is given.

    kill, stop: SIGKILL or SIGSTOP to this rank, whose process is noted in ``OWN_FAULT_PID``, a file.
    die: SIGKILL to this rank, every time.
    raise: a bug.
    parent-SIGTERM, ...: that signal to the process that started the ranks; goes on once it has been told of it.
    itself-SIGTERM, ...: that signal to this process.
    leap: on every rank, a step ten thousand times as far.
    """

    def __call__(self, step: int, num_steps: int) -> float:
        """The factor at ``step``, after the fault."""
        what, number, at = os.environ.get("OWN_FAULT", "none:0:0").split(":")
        again = any(os.environ.get(key, "0") != "0" for key in ("MMLM_ATTEMPT", "TORCHELASTIC_RESTART_COUNT"))
        rank = dist.get_rank() if dist.is_initialized() else 0
        if what == "leap" and step == int(at) and not _LEAPT:
            _LEAPT.append(step)
            return 1e4
        if (rank, step) == (int(number), int(at)) and (what == "die" or not again):
            _wait(Path(os.environ.get("OWN_FAULT_AFTER", "/")).exists)
            _do(what)
        return super().__call__(step, num_steps)


def _wait(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)


def _do(what: str) -> None:
    if what == "raise":
        raise RuntimeError("a bug on one rank")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("kill", "stop"):
        Path(os.environ["OWN_FAULT_PID"]).write_text(str(os.getpid()), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGSTOP)
    whom, _, name = what.partition("-")
    if whom == "itself":
        os.kill(os.getpid(), signal.Signals[name])
    if whom == "parent":
        _tell_parent(signal.Signals[name])


def _tell_parent(number: signal.Signals) -> None:
    """Returns once this rank has been asked to stop because of it."""
    asked: list[int] = []

    def note(then):
        def on_signal(arrived, frame):
            asked.append(arrived)
            then(arrived, frame)

        return on_signal

    for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, note(signal.getsignal(one)))
    os.kill(os.getppid(), number)
    _wait(lambda: asked)
