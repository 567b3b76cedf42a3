"""Measures time and peak memory of one piece of work in a fresh process: a peak of resident memory never goes down.

``measure("mmlm.bench.losses:info_nce", ["4096"])`` starts Python, calls ``mmlm.bench.losses.info_nce("4096")``, which
makes its inputs and returns the work, a function without arguments, and measures calls of that.
"""

import gc
import importlib
import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

Work = Callable[[], object]

LONG_SECONDS = 2.0
"""Work that takes longer is run once."""
REPEATS = 5
"""Runs of shorter work after the first."""
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "not enough memory")
"""Signs of a lack of memory in the last line of an error: of Python, of CUDA, and of PyTorch on a CPU."""
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to ``clear_refs``, it makes Linux start the peak of resident memory anew."""


@dataclass(frozen=True)
class Measured:
    """Time and memory of a piece of work."""

    seconds: float
    """Seconds of one run: of the only run, or the median of the runs after the first. On a CPU processor seconds of all
    threads, so that other work on the machine hardly counts; on a CUDA device seconds on the clock."""
    peak_bytes: int
    """Peak of memory in the first run, above the memory that was held when the work began (its inputs, the libraries).
    On a CPU resident memory of the process, on a CUDA device memory that PyTorch had allocated."""


def measure(module_function: str, arguments: Sequence[str]) -> Measured:
    """Runs ``module:function`` in a fresh process: it is called with ``arguments`` and returns the work to be measured.

    Raises MemoryError if the work does not fit (the process ran out of memory, or was killed for it), and RuntimeError
    with what the process said if it failed in another way.
    """
    command = [sys.executable, "-m", "mmlm.bench.process", module_function, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return Measured(**json.loads(found.stdout.splitlines()[-1]))
    last = (found.stderr.splitlines() or [""])[-1]
    if found.returncode == -signal.SIGKILL or any(sign in last for sign in OUT_OF_MEMORY):
        raise MemoryError(f"{module_function} {' '.join(arguments)}: does not fit")
    raise RuntimeError(f"{module_function} {' '.join(arguments)} failed:\n{found.stderr}")


def measure_here(work: Work) -> Measured:
    """Measures ``work`` in this process. Off Linux its peak must be above every earlier peak of the process."""
    on_cuda = torch.cuda.is_initialized()
    gc.collect()
    clock = time.perf_counter if on_cuda else time.process_time
    before = _start_peak(on_cuda)
    first = _timed(work, clock, on_cuda)
    peak = _peak(on_cuda) - before
    if first >= LONG_SECONDS:
        return Measured(first, peak)
    return Measured(statistics.median(_timed(work, clock, on_cuda) for _ in range(REPEATS)), peak)


def _timed(work: Work, clock: Callable[[], float], on_cuda: bool) -> float:
    begun = clock()
    work()
    if on_cuda:
        torch.cuda.synchronize()
    return clock() - begun


def _start_peak(on_cuda: bool) -> int:
    """Starts the peak anew, if the system can do that, and returns the bytes that are held now."""
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        # Not Linux, or not allowed: the peak so far is returned, so work with a smaller peak is measured as 0.
        return _peak(on_cuda)
    return _resident("VmRSS")


def _peak(on_cuda: bool) -> int:
    if on_cuda:
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        return _resident("VmHWM")
    # Bytes on macOS, KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Bytes of this process that are in memory now; off Linux the most that were."""
    return _resident("VmRSS") if STATUS.exists() else _peak(on_cuda=False)


def _resident(field: str) -> int:
    """A field of Linux's process status in bytes; the file gives it in KiB."""
    lines = (line.split(":") for line in STATUS.read_text(encoding="utf-8").splitlines())
    return next(int(value.split()[0]) for name, value in lines if name == field) * 1024


def main(argv: Sequence[str]) -> None:
    """Runs in the fresh process: prints a ``Measured`` as JSON."""
    module_function, *arguments = argv
    module, _, function = module_function.partition(":")
    work = getattr(importlib.import_module(module), function)(*arguments)
    print(json.dumps(asdict(measure_here(work))))


if __name__ == "__main__":
    main(sys.argv[1:])
