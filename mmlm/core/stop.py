"""Signals that ask a run to stop: they set a flag, which training reads between steps.

Ctrl-C sends SIGINT. SLURM sends SIGTERM before it preempts a job or ends the job at its time limit, and the signal of
its option ``--signal`` (SIGUSR1, SIGUSR2) some time earlier. None of these signals may interrupt a step.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""Signals that ask a run to stop, the most urgent first."""
_IMPATIENT = (signal.SIGINT,)
"""Signals that end a run at once when they come a second time. SIGTERM is none of them: at the time limit, SLURM sends
two to every process within milliseconds, and then waits (KillWait, 30 seconds) before it kills."""


@dataclass
class StopRequest:
    """A request to stop this process, which a signal makes."""

    signal_name: str | None = None
    """Name of the first signal that came, such as ``SIGTERM``; None before that."""

    def flags(self) -> list[float]:
        """For each of ``SIGNALS``, 1 if it was the first to come and else 0, so that ranks can agree by one sum."""
        return [float(one.name == self.signal_name) for one in SIGNALS]


def asked_by(flags: list[float]) -> str | None:
    """The name of the most urgent signal in ``StopRequest.flags`` summed over ranks; None if no rank received one."""
    return next((one.name for one, count in zip(SIGNALS, flags, strict=True) if count > 0), None)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Context in which SIGTERM, SIGUSR1, SIGUSR2 and SIGINT only record their name in the request that it yields.

    A second SIGINT raises KeyboardInterrupt at once. On leaving, the earlier handlers are restored as ``handled`` says.
    Only the main thread may enter (ValueError elsewhere), because Python runs signal handlers nowhere else.
    """
    request = StopRequest()
    seen: set[int] = set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # A user who presses Ctrl-C again does not want to wait for the end of the step.
        if number in seen and number in _IMPATIENT:
            raise KeyboardInterrupt
        seen.add(number)
        if request.signal_name is None:
            request.signal_name = signal.Signals(number).name

    with handled(on_signal):
        yield request


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context in which ``handler`` is called for each of ``SIGNALS``; the earlier handlers are restored on leaving.

    A handler that was set meanwhile by someone else, such as ``ignore_stop_signals``, stays.
    """
    before = {one: signal.signal(one, handler) for one in SIGNALS}
    try:
        yield
    finally:
        for one, own in before.items():
            if signal.getsignal(one) is handler:
                signal.signal(one, own)


def ignore_stop_signals() -> None:
    """Ignores ``SIGNALS`` in this process: a data worker, or a process that has saved and is about to end.

    A signal to all processes of a job is meant for the one that trains, which needs its workers until it has saved.
    """
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)


@contextmanager
def children_spared() -> Iterator[None]:
    """Context in which started processes are shielded from ``SIGNALS``; this process receives them on leaving.

    The signals are blocked, and a child process inherits what is blocked. Handlers would not do for multiprocessing's
    two servers, which start workers and clean up after them: they run no code of ours, and workers end with their
    server.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # Starting the resource tracker unblocks SIGINT and SIGTERM in this process (it ignores those two by itself), so
        # it is started first and the signals are blocked again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
