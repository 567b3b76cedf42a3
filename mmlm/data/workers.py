"""Data workers: processes that prepare shares of batches, from their start to their end."""

import atexit
import multiprocessing
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from types import TracebackType

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmlm.core.errors import PROGRAM, UserError
from mmlm.core.output import to_stderr
from mmlm.core.stop import children_spared, ignore_stop_signals
from mmlm.data.collate import Prepared

_MOST_REPLACED = 3
"""How often workers are replaced at one batch before the run gives up."""


def start_workers(shares: Dataset, cursor: Iterable[int], workers: int) -> DataLoader:
    """Worker processes that prepare whole shares, handed over in order. They start at the first iteration.

    Workers are forked from a server process and not from this one, which has threads by then: a fork copies the locks
    that those threads hold, but not the threads that would release them.
    """
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        # Every worker needs the modules of mmlm. The server imports them once for all workers, while this process goes
        # on to build the model.
        context.set_forkserver_preload([name for name in sys.modules if name.startswith("mmlm.")])
        with children_spared():
            forkserver.ensure_running()
    loader = _Workers(
        shares,
        batch_size=None,
        sampler=cursor,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_begin_worker,
        multiprocessing_context=context,
        persistent_workers=True,
        # A generator of its own: DataLoader draws a seed at each iteration, which must not move the run's random state.
        generator=torch.Generator(),
    )
    # A weak reference: the registration must not keep the workers of a loader that is no longer used.
    atexit.register(_end_workers, weakref.ref(loader))
    return loader


class _Workers(DataLoader):
    """A ``DataLoader`` that ends its workers when nobody uses it any more, also one that has not begun by then.

    torch would let such a one find that the queues are gone, and print a traceback.
    """

    def __del__(self) -> None:
        _shut_down(self)


@dataclass(frozen=True)
class Unshared:
    """A share whose pixels travel as plain bytes, since they found no room in shared memory."""

    light: Prepared
    """The share without its images."""
    shape: tuple[int, ...]
    pixels: bytes

    def prepared(self) -> Prepared:
        """The share as it was."""
        images = torch.frombuffer(bytearray(self.pixels), dtype=torch.uint8).view(self.shape)
        return replace(self.light, images=images)


def from_workers(loader: DataLoader) -> Iterator[Prepared | UserError]:
    """What the workers of ``start_workers`` prepare, from the position of their cursor on.

    Workers that are killed, as by the system when memory is short, are replaced, and the batch is prepared again: they
    have no state. Raises UserError if that does not help, or if workers cannot be started.
    """
    replaced, told = 0, False
    while True:
        try:
            for shared in _begin(loader):
                replaced = 0
                if isinstance(shared, Unshared):
                    if not told:
                        _say("/dev/shm is full, and batches go through a pipe, which is slower; enlarge it")
                    told = True
                    yield shared.prepared()
                else:
                    yield shared
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if not _has_lost_a_worker(error):
                raise
            reason = str(error) or "a data worker is gone"
        _shut_down(loader)
        if replaced == _MOST_REPLACED:
            raise UserError(
                f"data.workers: they have ended {replaced + 1} times at one batch ({reason}); if memory is short use "
                "fewer, and data.workers=0 shows an error that a worker cannot tell"
            )
        replaced += 1
        _say(f"{reason}; the data workers are started again ({replaced} of {_MOST_REPLACED})")


def _has_lost_a_worker(error: Exception) -> bool:
    """Whether a worker is gone, rather than that something has failed in one: torch tells that as "Caught ..."."""
    if isinstance(error, RuntimeError):
        return re.match(r"DataLoader worker .* (exited unexpectedly|is killed by signal)", str(error)) is not None
    return not str(error).startswith("Caught ")  # pixels that it has announced cannot be fetched from it


def _begin(loader: DataLoader) -> Iterator[Prepared | Unshared | UserError]:
    """An iteration over what the workers prepare, which starts them. Raises UserError if they cannot be started."""
    try:
        # torch's iterator would print a traceback of its own when it is thrown away half made. So the queues that it
        # is about to make, one for each worker and one for results, are tried first.
        queues = [loader.multiprocessing_context.Queue() for _ in range(loader.num_workers + 1)]
        del queues
        with children_spared():
            return iter(loader)
    except OSError as error:  # their queues need room in /dev/shm
        raise UserError(
            f"data.workers: they cannot be started ({error.strerror}); enlarge /dev/shm (docker run --shm-size=1g), or "
            "use data.workers=0"
        ) from error


def hand_over(prepared: Prepared) -> Prepared | Unshared:
    """In a worker: moves the pixels to shared memory, from where the training process takes them, if there is room.

    DataLoader would do that in a thread, whose failure nobody sees: the batch would never come.
    """
    if get_worker_info() is None or not prepared.images.numel():
        return prepared
    try:
        prepared.images.share_memory_()
    except (RuntimeError, OSError):
        shape, pixels = tuple(prepared.images.shape), prepared.images.numpy().tobytes()
        return Unshared(replace(prepared, images=prepared.images[:0].clone()), shape, pixels)
    return prepared


def _say(text: str) -> None:
    to_stderr(f"{PROGRAM}: {text}")


def _shut_down(loader: DataLoader) -> None:
    """Ends the workers of the current iteration; the next iteration starts new ones."""
    if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()
        for worker in loader._iterator._workers:
            # One that was killed may have had the lock of their queue: the others wait for it, and ignore SIGTERM.
            if worker.is_alive():
                worker.kill()
    loader._iterator = None


def _end_workers(reference: "weakref.ref[DataLoader]") -> None:
    """Called at the exit of the process: ends the workers of an iteration that is still alive.

    multiprocessing would send them SIGTERM, which our workers ignore, and then wait for them for ever.
    """
    loader = reference()
    if loader is not None:
        _shut_down(loader)


def _identity(prepared: object) -> object:
    """In place of DataLoader's own conversion of what a worker returns. At module level, so that it can be pickled."""
    return prepared


def _begin_worker(worker: int) -> None:
    """Called first in each worker: ignores signals that ask to stop, and watches the training process.

    Ctrl-C reaches every process of the terminal, but the training process finishes its step and saves, and needs its
    workers for that. A training process that is killed cannot tell its workers to end, so each of them waits for its
    end. torch's own watch does not help: it looks at the parent, which is the fork server, and the server lives on
    because its workers hold the pipe that would tell it of the end.
    """
    ignore_stop_signals()
    sys.excepthook = _tell
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """The ``sys.excepthook`` of a worker, to which multiprocessing's thread that hands over pixels tells its errors.

    A training process that is stopped while it fetches some lets go of the connection, which is no error.
    """
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def _end_with_the_parent() -> None:
    """Runs in a thread: ends the worker at once when the training process has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
