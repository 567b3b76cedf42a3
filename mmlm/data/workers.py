"""Data workers: processes that prepare shares of batches, from their start to their end."""

import atexit
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Iterable
from multiprocessing import forkserver

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmlm.core.stop import children_spared, ignore_stop_signals


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
    loader = DataLoader(
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


def _end_workers(reference: "weakref.ref[DataLoader]") -> None:
    """Called at the exit of the process: ends the workers of an iteration that is still alive.

    multiprocessing would send them SIGTERM, which our workers ignore, and then wait for them for ever.
    """
    loader = reference()
    if loader is not None and isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()


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
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _end_with_the_parent() -> None:
    """Runs in a thread: ends the worker at once when the training process has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
