"""Three processes that stand for the ranks of a run: they meet by gloo, compute a task together, and wait for the next.

They are forked once from a server that has imported everything, so that a task takes some tenths of a second.
"""

import io
import multiprocessing
import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmlm.check.report import raised

MOST = 3
"""Number of processes: that of ranks at most."""
_OF_COMMUNICATION = ("collective", "onnection", "monitoredBarrier", "imed out", "gloo", "Gloo")
"""Words of the errors that a rank gets because another one does something else."""


class RanksFailed(Exception):  # noqa: N818 - what happened to the ranks, told in one line by whoever started them
    """Raised if a task did not end well on every rank. The message names a rank and what happened there.

    ``of_communication`` is true if no rank failed by itself: they waited for one another.
    """

    def __init__(self, message: str, of_communication: bool) -> None:
        super().__init__(message)
        self.of_communication = of_communication


@dataclass(frozen=True)
class _Failure:
    """What a rank says instead of a result."""

    message: str
    of_communication: bool


class Ranks:
    """Simulated ranks on this machine, started at the first task and stopped by ``close`` or at the end of ``with``.

    Args:
        patience: seconds that a rank waits for the others in one collective.
    """

    def __init__(self, patience: float = 60.0) -> None:
        self._patience = patience
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tasks = 0

    def __enter__(self) -> "Ranks":
        # The server imports what it needs, some seconds, while this process goes on.
        _server()
        forkserver.ensure_running()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, size: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
        """Calls ``work(*arguments)`` on each of ``size`` ranks of one process group; returns the results by rank.

        ``work`` is a function of a module, and arguments and results can be pickled. Raises RanksFailed if it raises
        somewhere, if the ranks do not call the same collectives, or if one ends or takes too long.
        """
        if not self._processes:
            self._start()
        assert self._folder is not None
        self._tasks += 1
        store = f"{self._folder.name}/store{self._tasks}"
        # A plug-in may be importable here by a path that has been added since the processes were started.
        task = pickle.dumps((work, arguments))
        for rank, connection in enumerate(self._connections[:size]):
            connection.send((store, rank, size, self._patience, list(sys.path)))
            connection.send_bytes(task)
        answers = self._answers(size)
        failures = {rank: answer for rank, answer in answers.items() if isinstance(answer, _Failure)}
        if failures:
            self.close()  # what is left of a group that broke apart is unknown
            by_itself = {rank: failure for rank, failure in failures.items() if not failure.of_communication}
            rank, failure = min((by_itself or failures).items())
            raise RanksFailed(f"rank {rank} of {size}: {failure.message}", failure.of_communication)
        return [answers[rank] for rank in range(size)]

    def close(self) -> None:
        """Ends the processes; the next task starts new ones."""
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._connections, self._folder = [], [], None

    def _start(self) -> None:
        context = _server()
        self._folder = tempfile.TemporaryDirectory(prefix="mmlm-check-")
        for rank in range(MOST):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, f"{self._folder.name}/{rank}.err"), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)

    def _answers(self, size: int) -> dict[int, Any]:
        """What each rank sends back; a ``_Failure`` for one that ends, or does not answer in time."""
        answers: dict[int, Any] = {}
        # Building a part may take a while on a busy machine; once a rank has failed, the others are given the time of
        # one collective.
        end = time.monotonic() + 600
        while len(answers) < size:
            open_ranks = [rank for rank in range(size) if rank not in answers]
            ends: list[Any] = [self._connections[rank] for rank in open_ranks]
            ready = wait(ends, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                answers |= {rank: _Failure("it did not come to an end", True) for rank in open_ranks}
            for rank in open_ranks:
                if self._connections[rank] in ready:
                    answers[rank] = self._answer(rank)
            if any(isinstance(answer, _Failure) for answer in answers.values()):
                end = min(end, time.monotonic() + 1.5 * self._patience)
        return answers

    def _answer(self, rank: int) -> Any:
        try:
            return torch.load(io.BytesIO(self._connections[rank].recv_bytes()), weights_only=False)
        except (EOFError, OSError):
            self._processes[rank].join(5)
            assert self._folder is not None
            said = Path(f"{self._folder.name}/{rank}.err").read_text(errors="replace").strip().splitlines()
            last = f" ({said[-1][:200]})" if said else ""
            return _Failure(f"the process ended with status {self._processes[rank].exitcode}{last}", True)


def _server() -> ForkServerContext:
    """The server that ranks are forked from, and not from this process, whose threads would not be in the copy."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlm.check.slots"])
    return context


def _serve(connection: Connection, errors: str) -> None:
    """What each process does: one task after the other, until the other end of the connection is closed."""
    with Path(errors).open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    # Every collective is compared among the ranks before it is run, and one that differs is named.
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    while True:
        try:
            store, rank, size, patience, path = connection.recv()
            task = connection.recv_bytes()
        except EOFError:
            return
        sys.path[:] = path
        answer: Any
        try:
            work, arguments = pickle.loads(task)
            answer = _in_group(store, rank, size, patience, work, arguments)
        except Exception as error:
            said = raised(error)
            waited = isinstance(error, RuntimeError) and any(word in said for word in _OF_COMMUNICATION)
            answer = _Failure(_shorter(said), waited)
        stream = io.BytesIO()
        torch.save(answer, stream)
        connection.send_bytes(stream.getvalue())


def _shorter(said: str) -> str:
    """What torch says of collectives that differ, without the dump of their tensors."""
    found = re.findall(
        r"Rank (\d+) is running collective: CollectiveFingerPrint\(SequenceNumber=\d+,?\s*OpType=(\w+)", said
    )
    place = re.search(r" \([^()]*, line \d+\)$", said)
    if len(found) < 2:
        return said
    return ", ".join(f"rank {rank} runs {kind}" for rank, kind in found) + (place.group() if place else "")


def _in_group(store: str, rank: int, size: int, patience: float, work: Callable[..., Any], arguments: tuple) -> Any:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=patience)
    )
    try:
        return work(*arguments)
    finally:
        dist.destroy_process_group()
