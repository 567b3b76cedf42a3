"""What the signals that ask a process to stop mean, in every phase of a command.

Ctrl-C sends SIGINT, a terminal that is closed SIGHUP. SLURM sends SIGTERM before it preempts a job or ends the job at
its time limit, and the signal of its option ``--signal`` (SIGUSR1, SIGUSR2) some time earlier. They mean the same:

- Where nothing would be lost, the command ends at once (``ended_by_signals``): all commands but training, and training
  until it holds its run folder.
- From then on training takes a signal down (``stop_request``) and stops where the state is whole: after a step, between
  two batches of an evaluation, and while it waits for data. It saves before it ends.
- Data workers, and a process that has saved, ignore them (``ignore_stop_signals``).

Before a command has imported what it needs, and in ranks that do not train yet, the operating system ends the process.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType

_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
"""Signals that ask a run to stop, the most urgent first. Windows has only some, and every command is refused there."""
_IMPATIENT = (signal.SIGINT,)
"""Signals that end a run at once when they come a second time. SIGTERM is none of them: at the time limit, SLURM sends
two to every process within milliseconds, and then waits (KillWait, 30 seconds) before it kills."""
KILLED = 128
"""What shells add to the number of the signal that ended a process; the exit status of a command that one ended."""


class EndedBySignal(KeyboardInterrupt):
    """Raised in the main thread, wherever it is, by a signal that ends what is being done."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal_name = signal.Signals(number).name
        self.status = KILLED + number
        """Exit status of a command that ends by it."""


class StopAsked(BaseException):
    """Raised by ``StopRequest.check``, where nothing is lost by stopping. ``signal_name`` is that of the signal.

    No error, so that what goes on after an error (an evaluator that fails costs its own scores only) does not go on
    after it.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name


@dataclass
class StopRequest:
    """A request to stop this process, which a signal makes."""

    signal_name: str | None = None
    """Name of the first signal that came, such as ``SIGTERM``; None before that."""
    _at_once: bool = False

    def check(self) -> None:
        """Raises StopAsked if a signal has come. For places between two pieces of work."""
        if self.signal_name is not None:
            raise StopAsked(self.signal_name)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context in which a signal raises EndedBySignal at once, also one that has come before.

        For waiting that may never end, where interrupting leaves nothing half done.
        """
        self._at_once = True
        try:
            if self.signal_name is not None:
                raise EndedBySignal(signal.Signals[self.signal_name])
            yield
        finally:
            self._at_once = False

    def arrived(self, number: int) -> None:
        """Takes a signal down; to be called by its handler. Raises EndedBySignal within ``at_once``."""
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
        if self._at_once:
            raise EndedBySignal(number)

    def flags(self) -> list[float]:
        """For each of ``SIGNALS``, 1 if it was the first to come and else 0, so that ranks can agree by one sum."""
        return [float(one.name == self.signal_name) for one in SIGNALS]


def asked_by(flags: list[float]) -> str | None:
    """The name of the most urgent signal in ``StopRequest.flags`` summed over ranks; None if no rank received one."""
    return next((one.name for one, count in zip(SIGNALS, flags, strict=True) if count > 0), None)


@contextmanager
def stop_request(speaks: bool = True) -> Iterator[StopRequest]:
    """Context in which ``SIGNALS`` only record their name in the request that it yields.

    A second SIGINT raises KeyboardInterrupt at once; the first says so if stderr is a terminal and this process
    ``speaks``. On leaving, the earlier handlers are restored as ``handled`` says.
    Only the main thread may enter (ValueError elsewhere), because Python runs signal handlers nowhere else.
    """
    request = StopRequest()
    seen: set[int] = set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # A user who presses Ctrl-C again does not want to wait for the end of the step.
        if number in seen and number in _IMPATIENT:
            raise KeyboardInterrupt
        if number in _IMPATIENT and not seen and speaks:
            _say_that_it_stops()
        seen.add(number)
        request.arrived(number)

    with handled(on_signal):
        yield request


def _say_that_it_stops() -> None:
    """Tells whoever has pressed Ctrl-C what happens now. Writes past the streams: a handler may interrupt a print."""
    with suppress(OSError, ValueError):  # of a stderr that is closed, or no file
        terminal = sys.stderr.fileno()
        if os.isatty(terminal):
            os.write(terminal, b"\nmmlm: stopping after this step, once it is saved; Ctrl-C again to leave now\n")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Context in which the first of ``SIGNALS`` raises EndedBySignal wherever the main thread is; see ``handled``.

    Others that follow must not interrupt what is cleaned up then; another SIGINT does, for somebody who does not want
    to wait.
    """
    ended = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        if not ended or number in _IMPATIENT:
            ended = True
            raise EndedBySignal(number)

    with handled(on_signal):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context in which ``handler`` is called for each of ``SIGNALS``; the earlier handlers are restored on leaving.

    A handler that was set meanwhile by someone else, such as ``ignore_stop_signals``, stays. A SIGHUP that is ignored
    stays ignored: that is how ``nohup`` lets a command outlive its terminal.
    """
    before = {one: signal.signal(one, handler) for one in SIGNALS if not _is_nohup(one)}
    try:
        yield
    finally:
        for one, own in before.items():
            if signal.getsignal(one) is handler:
                signal.signal(one, own)


def _is_nohup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


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
