"""The cluster of ``slurm/local-cluster`` as the tests use it: submit, wait for something, look at it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "local-cluster" / "cluster.py"
PATIENCE = 300.0
"""Seconds to wait for what a cluster does: it takes a few, starting and training a minute, on a busy machine more."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
"""States of a job that is over."""


def control(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """``cluster.py`` with arguments."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster with the nodes n1 and n2."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of every command: no variables of a job around the tests."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "HYDRA"))}
        return {
            **kept,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'plugin'}",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints; it has to succeed."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def submit(self, folder: Path, script: str, *options: str) -> str:
        """Submits lines of a batch script that logs to ``folder / "log"``; the job's number."""
        file = folder / "batch.sh"
        file.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        log = ("--output", str(folder / "log"), "--open-mode=append", "--chdir", str(folder))
        return self.run("sbatch", "--parsable", *log, *options, str(file))

    def facts(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of it."""
        shown = self.run("scontrol", "show", "job", job, "--oneliner")
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait_for_state(self, job: str, *states: str) -> None:
        """Until the job is in one of the states; AssertionError at once if it ends in another."""

        def reached() -> bool:
            state = self.facts(job)["JobState"]
            assert state in states or state not in ENDED, self.facts(job)
            return state in states

        self.wait(reached, f"job {job} is not {states}", lambda: self.facts(job))

    def wait_for_end(self, job: str) -> dict[str, str]:
        """Until the job has ended for good; what SLURM then says of it."""
        self.wait_for_state(job, *ENDED)
        return self.facts(job)

    def wait(self, condition: Callable[[], bool], told: str, seen: Callable[[], object] = str) -> None:
        """Until a condition holds; AssertionError with ``told`` and ``seen`` after a generous time."""
        assert until(condition, PATIENCE, pause=0.2), (told, seen(), self.run("squeue"))

    def wait_for_text(self, file: Path, text: str, times: int = 1) -> None:
        """Until a file holds a text."""

        def holds() -> str:
            return file.read_text(encoding="utf-8") if file.exists() else ""

        self.wait(lambda: holds().count(text) >= times, f"{file} lacks '{text}'", holds)

    def stop_node(self, name: str) -> None:
        """Kills a node and what runs on it."""
        done = control("stop-node", str(self.folder), name)
        assert done.returncode == 0, done.stderr

    def start_node(self, name: str) -> None:
        """Starts a node again."""
        done = control("start-node", str(self.folder), name)
        assert done.returncode == 0, done.stderr

    def node_state(self, name: str) -> str:
        """As ``sinfo`` says it; a star behind it: it does not answer."""
        return self.run("sinfo", "--noheader", "--partition=main", f"--nodes={name}", "--format=%T")

    def python(self, program: str, *arguments: str) -> str:
        """A shell command that runs a Python program."""
        return shlex.join([sys.executable, "-c", program, *arguments])


def bring_up(folder: Path, options: Sequence[str] = ()) -> tuple[LocalCluster | None, str]:
    """A started cluster, or None and why there is none."""
    done = control("up", str(folder), *options)
    return (LocalCluster(folder), "") if done.returncode == 0 else (None, done.stderr.strip())
