"""Signals that ask a run to stop, as a flag that is looked at between steps.

Ctrl-C sends SIGINT; SLURM sends SIGTERM before it preempts a job or ends it at its time limit, and what ``--signal``
names (SIGUSR1, SIGUSR2) some time before that. None of them may end a step in its middle.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""What a run is asked to stop with, the most pressing first."""
_IMPATIENT = (signal.SIGINT,)
"""Those that end a run at once when they come a second time. Not SIGTERM: at its time limit, SLURM sends a job's
processes two within milliseconds, and then waits (KillWait, 30 seconds) before it kills."""


@dataclass
class StopRequest:
    """Whether this process has been asked to stop."""

    signal_name: str | None = None
    """The first signal that came, such as ``SIGTERM``; None: none has come."""

    def flags(self) -> list[float]:
        """1 for the signal that came, else 0, for each of ``SIGNALS``; added up over ranks they say what came where."""
        return [float(one.name == self.signal_name) for one in SIGNALS]


def asked_by(flags: list[float]) -> str | None:
    """The name of the most pressing signal of ``StopRequest.flags`` (summed over ranks); None if no rank has one."""
    return next((one.name for one, count in zip(SIGNALS, flags, strict=True) if count > 0), None)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within it, SIGTERM, SIGUSR1, SIGUSR2 and SIGINT only leave their name in the request that it yields.

    A second SIGINT raises KeyboardInterrupt at once. Afterwards the handlers are what they were, as ``handled`` says.
    To be entered in the main thread only (ValueError elsewhere): Python handles signals nowhere else.
    """
    request, seen = StopRequest(), set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number in seen and number in _IMPATIENT:
            raise KeyboardInterrupt
        seen.add(number)
        if request.signal_name is None:
            request.signal_name = signal.Signals(number).name

    with handled(on_signal):
        yield request


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it, ``handler`` is called for each of ``SIGNALS``; afterwards the handlers are what they were.

    Except where another one was set within it, such as by ``ignore_stop_signals``: that one stays.
    """
    before = {one: signal.signal(one, handler) for one in SIGNALS}
    try:
        yield
    finally:
        for one, own in before.items():
            if signal.getsignal(one) is handler:
                signal.signal(one, own)


def ignore_stop_signals() -> None:
    """For a helper process, as a signal to all processes of a job is for the one that trains, which needs its helpers;
    and for one that has stopped already and is about to end."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)


@contextmanager
def children_spared() -> Iterator[None]:
    """Processes that are started within it are spared the signals; here they arrive once it is left.

    A blocked signal stays blocked in what is started meanwhile. multiprocessing's two servers, which start workers and
    tidy up after them, cannot be given handlers of their own, and workers end with their server.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM here, for it ignores those by itself
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
