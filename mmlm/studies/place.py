"""The folder of a study: what its runs cost, who runs each of them, and what they print.

runs/studies/<name>/
    costs.json        parameters, FLOPs and seconds of cells, as they were found (studies/costs.py)
    tasks/            for each run: who runs it (.json), what it prints (.log), and how it ended (.status)
    slurm/            batch files, and the jobs that were submitted (studies/array.py)
    report.md         the tables (studies/table.py)
    report.html       the same with curves, intervals and captions as pictures (studies/page.py)
    table.tex         the same for a paper (studies/contrast_table.py)
    runs.parquet      every score and item of every run, of which they are made (studies/record.py)
    lock              held while a command runs the study
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmlm.record.folder import write_whole

FOLDER = "studies"
"""Below the folder of all runs."""
COSTS = "costs.json"
TASKS = "tasks"
SLURM = "slurm"
REPORT = "report.md"
PAGE = "report.html"
LATEX = "table.tex"
SCORES = "runs.parquet"
_LINE = 100_000
"""Bytes at the end of a log in which its last lines are."""


@dataclass(frozen=True)
class Task:
    """Who runs a run, or ran it last."""

    host: str
    pid: int | None
    """None of a task of SLURM."""
    job: str | None
    """The number of the task for SLURM, such as ``7_3``."""
    codes: tuple[str, ...]
    """Digests of the code that has run it, in order."""


@dataclass(frozen=True)
class Place:
    """The folder of one study."""

    folder: Path

    @classmethod
    def of(cls, runs: str, name: str) -> "Place":
        """That of the study ``name`` below the folder of all runs."""
        return cls(Path(runs) / FOLDER / name)

    @property
    def costs(self) -> Path:
        """What is known of the costs of cells."""
        return self.folder / COSTS

    def log(self, label: str) -> Path:
        """What a run prints, over all of its starts."""
        return self.folder / TASKS / f"{label}.log"

    def status_file(self, label: str) -> Path:
        """Holds the exit status of a run's last start once it has ended."""
        return self.folder / TASKS / f"{label}.status"

    def began(self, label: str, code: str, pid: int | None = None, job: str | None = None) -> None:
        """Notes who runs a run from now on, with which code. ``forget_end`` goes before."""
        (self.folder / TASKS).mkdir(parents=True, exist_ok=True)
        before = self.task(label)
        codes = () if before is None else before.codes
        task = Task(platform.node(), pid, job, codes if code in codes[-1:] else (*codes, code))
        write_whole(self.folder / TASKS / f"{label}.json", json.dumps(asdict(task)) + "\n")

    def forget_end(self, label: str) -> None:
        """Removes what is known of the end of a run's last start, before the next one."""
        self.status_file(label).unlink(missing_ok=True)

    def ended(self, label: str, status: int) -> None:
        """Notes the exit status of a run's process; negative: minus the signal that ended it."""
        write_whole(self.status_file(label), f"{status}\n")

    def task(self, label: str) -> Task | None:
        """Who runs a run, or ran it last; None if nobody has, or the file is damaged."""
        try:
            found = json.loads((self.folder / TASKS / f"{label}.json").read_bytes())
            return Task(
                str(found["host"]),
                None if found["pid"] is None else int(found["pid"]),
                None if found["job"] is None else str(found["job"]),
                tuple(str(code) for code in found["codes"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def status(self, label: str) -> int | None:
        """The exit status of a run's last start; None if it has not ended, or nobody has seen its end."""
        try:
            return int(self.status_file(label).read_text())
        except (OSError, ValueError):
            return None

    def last_words(self, label: str) -> str:
        """The last line that a run has printed about itself, or of a traceback; empty if there is none."""
        return last_words(self.log(label))


def last_words(log: Path) -> str:
    """The last line in a log that a command has headed by its name, or else the last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LINE))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    own = [line.removeprefix("mmlm: ") for line in lines[-20:] if line.startswith("mmlm: ")]
    return (own or lines or [""])[-1]


def is_alive(task: Task) -> bool:
    """Whether the process of a task runs on this machine. Of a task of SLURM or of another machine nobody knows."""
    if task.pid is None or task.host != platform.node():
        return False
    try:
        os.kill(task.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # the number may be another process's by now, or a dead one's that nobody has waited for
        return b"mmlm" in Path(f"/proc/{task.pid}/cmdline").read_bytes()
    except OSError:
        return True


def elapsed(since: float) -> str:
    """Seconds since a moment, in words."""
    return duration(time.time() - since)


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def written(words: Sequence[str]) -> str:
    """Lines as the text of a file."""
    return "".join(f"{word}\n" for word in words)
