"""Starts ranks as real processes, for the tests of what several of them compute together."""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mmlm.core.stop import SIGNALS

_IMPORTED = ["timm", "mmlm.run.ranks", "pytest"]
"""Imported once by the server that ranks are forked from: a rank would need some seconds of each core for it."""


def run_ranks(folder: Path, size: int, module: str, timeout: float = 600) -> list[dict[Any, Any]]:
    """Starts ``size`` ranks; each calls ``be_a_rank(folder, rank, size)`` of ``module``, with warnings as errors.

    Returns what each left in the file RANK.pt of ``folder``, by rank. All have to end well within ``timeout`` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    ranks = [context.Process(target=_run_rank, args=(module, folder, rank, size)) for rank in range(size)]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout
    try:
        for process in ranks:
            process.join(max(0.0, end - time.monotonic()))
        said = "\n".join(_errors(folder, rank).read_text() for rank in range(size) if _errors(folder, rank).exists())
        assert [process.exitcode for process in ranks] == [0] * size, said
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _run_rank(module: str, folder: Path, rank: int, size: int) -> None:
    with _errors(folder, rank).open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    # An earlier test of this process may have started the server for its data workers, which are shielded from signals.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    import_module(module).be_a_rank(folder, rank, size)


def _errors(folder: Path, rank: int) -> Path:
    """The file with what a rank wrote to stderr."""
    return folder / f"{rank}.err"
