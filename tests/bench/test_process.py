"""A piece of work in a fresh process: its time, its peak memory, and what is said when it fails."""

import signal
import subprocess
import time
from collections.abc import Callable

import pytest
import torch

from mmlm.bench import process
from mmlm.bench.process import measure, measure_here

MIB = 2**20


def hold(mebibytes: str) -> Callable[[], object]:
    """Work that touches so much memory and gives it back."""
    inputs = torch.ones(int(mebibytes) * MIB // 8)
    return lambda: torch.cat([inputs, inputs]).sum()


def fail() -> Callable[[], object]:
    """Work that cannot be made."""
    raise ValueError("no work")


@pytest.mark.slow
def test_the_peak_is_that_of_the_work_alone():
    found = measure("tests.bench.test_process:hold", ["64"])
    assert 64 * MIB <= found.peak_bytes < 80 * MIB, "inputs and libraries are not counted"
    assert found.seconds > 0


@pytest.mark.slow
def test_what_the_process_said_is_kept():
    with pytest.raises(RuntimeError, match=r"(?s)^tests\.bench\.test_process:fail  failed:.*ValueError: no work"):
        measure("tests.bench.test_process:fail", [])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (-signal.SIGKILL, ""),
        (1, "Traceback\nMemoryError"),
        (1, "torch.OutOfMemoryError: CUDA out of memory."),
        (1, "RuntimeError: [enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: not enough memory: you tried ..."),
    ],
)
def test_work_that_does_not_fit_is_told_apart(monkeypatch, status, said):
    ended = subprocess.CompletedProcess([], status, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: ended)
    with pytest.raises(MemoryError, match=r"^bench:work 4: does not fit$"):
        measure("bench:work", ["4"])


def test_short_work_is_repeated_and_long_work_is_not(monkeypatch):
    runs = []
    measure_here(lambda: runs.append(1))
    assert len(runs) == 1 + process.REPEATS
    monkeypatch.setattr(process, "LONG_SECONDS", 0.0)
    measure_here(lambda: runs.append(1))
    assert len(runs) == 2 + process.REPEATS


def test_waiting_for_others_is_no_time_on_a_cpu(monkeypatch):
    monkeypatch.setattr(process, "REPEATS", 1)
    assert measure_here(lambda: time.sleep(0.05)).seconds < 0.04
