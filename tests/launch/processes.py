"""Commands in processes of their own, and the tiny run that tests of ranks share."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PLUGIN, TINY, Outcome
from tests.waiting import until

ROOT = PLUGIN.parents[1]
PATIENCE = 240.0
"""Seconds to wait for what a process does: it takes a few, on a busy machine more."""
LOCAL = ("launcher=local", "processes=2")
TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2 -m mmlm.train"
FAULTY = ("plugins=[own_faults]", "schedule=constant", "schedule.warmup_steps=2")
FAULTY = (*FAULTY, "schedule._target_=own_faults.FaultySchedule")
RANDOM = (*FAULTY, "transform=augment", "decoder.dropout=0.1", "train.ema_decay=0.9", "train.steps=6")
RANDOM = (*RANDOM, "train.save_every=2")
"""A run with all kinds of randomness and state in it, and faults to order; an epoch has 2 steps."""
ALIKE = (*FAULTY, "train.steps=6", "train.save_every=2", "train.ema_decay=0.9", "train.eval_every=3")
ALIKE = (*ALIKE, "train.diagnose_every=2")
"""One without dropout, whose draws are a rank's own: any number of ranks trains the same run."""
FOREIGN = ("HYDRA", "SLURM", "MMLM", "OWN_FAULT")
"""How variables begin that commands must not find in the environment of the tests."""


@dataclass
class Commands:
    """Starts commands, and ends what is left of them."""

    folder: Path
    """For files of their own."""
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(
        self,
        module: str,
        *arguments: str,
        fault: str | None = None,
        after: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        """``python -m <module> <arguments>``, a module may bring arguments; the fault is that of ``environment_of``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        process = subprocess.Popen(
            [sys.executable, "-m", *module.split(), *arguments],
            env={**kept, **environment_of(self.pid_file, fault, after), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(
        self,
        module: str,
        *arguments: str,
        fault: str | None = None,
        after: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """What it left in the terminal, once it has ended."""
        return finish(self.start(module, *arguments, fault=fault, after=after, environment=environment))

    @property
    def pid_file(self) -> Path:
        """Where a rank notes itself before it is killed or stopped."""
        return self.folder / "pid"

    def pid(self) -> int:
        """The rank that a fault has struck, once it has."""
        wait(lambda: self.pid_file.exists() and self.pid_file.read_text() != "", "no fault came")
        return int(self.pid_file.read_text())


def environment_of(pid_file: Path, fault: str | None = None, after: Path | None = None) -> dict[str, str]:
    """The variables of a command that finds the plug-ins, with a fault of ``own_faults`` in it.

    The fault waits for ``after`` to exist: a checkpoint, which is written while training goes on.
    """
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGIN}", "OMP_NUM_THREADS": "1", "OWN_FAULT_PID": str(pid_file)}
    variables |= {} if fault is None else {"OWN_FAULT": fault}
    return variables | ({} if after is None else {"OWN_FAULT_AFTER": str(after)})


def finish(process: "subprocess.Popen[str]") -> Outcome:
    """Waits for the end of it."""
    out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out, err)


def wait(condition: Callable[[], bool], told: str) -> None:
    """Until a condition holds; AssertionError with ``told`` after a generous time."""
    assert until(condition, PATIENCE), told


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """Commands that all have ended once it is left; what they started ends with them."""
    started = Commands(folder)
    try:
        yield started
    finally:
        for process in started.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def told(outcome: Outcome) -> list[str]:
    """The lines of stderr that are its own, without the name before them."""
    return [line.removeprefix("mmlm: ") for line in outcome.err.splitlines() if line.startswith("mmlm: ")]


def tiny_on(images: Path, runs: Path) -> tuple[str, ...]:
    """The command line of a tiny run on a folder of images."""
    folders = (f"data.train.folder={images}", f"data.validation.validation.folder={images}", f"runs={runs}")
    return (*TINY, *folders)
