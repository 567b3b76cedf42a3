"""The tiny training that faults are injected into, and where it stands."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import TINY
from tests.faults.processes import Command, Surroundings
from tests.waiting import until

STEPS, SAVE_EVERY, LOG_EVERY = 12, 2, 3
NAN_STEP = 5
"""The optimizer step (from 0) whose loss is not a number, where that is what a round is about."""
LIMIT = 300.0
"""Seconds within which anything has to happen."""
_SECONDS_OF_A_STEP = 0.06
_SECONDS_OF_A_START = 12.0


@dataclass(frozen=True)
class Variant:
    """What is computed: runs of one variant end bit for bit the same."""

    processes: int
    nan: bool = False
    """The loss of one step is not a number."""
    dropout: bool = True
    """Its masks depend on how many ranks there are."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.processes}" + ("-nan" if self.nan else "") + ("" if self.dropout else "-without-dropout")


@dataclass(frozen=True)
class Training:
    """The command of one run. A single process runs without a launcher, several are started by one."""

    variant: Variant
    data: Path
    """Folder of the drawn images."""
    runs: Path
    workers: int = 0

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.runs / "caption_base" / "run" / "seed=0"

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    def arguments(self) -> list[str]:
        """What stands after ``python -m``."""
        captioning = "objective.objectives.captioning"
        several = ["launcher=local", f"processes={self.variant.processes}"] if self.variant.processes > 1 else []
        return [
            "mmlm.train",
            *TINY,
            f"data.train.folder={self.data}",
            f"data.validation.validation.folder={self.data}",
            f"data.workers={self.workers}",
            f"runs={self.runs}",
            "name=run",
            f"train.steps={STEPS}",
            f"train.save_every={SAVE_EVERY}",
            f"train.log_every={LOG_EVERY}",
            "train.eval_every=6",
            "train.best_metric=validation/captioning/CIDEr-D",
            "train.ema_decay=0.9",
            f"decoder.dropout={0.1 if self.variant.dropout else 0.0}",
            # Without noise in place of gradients that are zero: what ranks add up in another order stays close.
            "optim.eps=0.001",
            "ranks.timeout_seconds=30",
            "ranks.watchdog_seconds=10",
            "plugins=[slow_parts]",
            f"{captioning}._target_=slow_parts.SlowCaptioning",
            f"+{captioning}.sleep_seconds=0.03",
            f"+{captioning}.nan_step={NAN_STEP if self.variant.nan else 'null'}",
            *several,
        ]

    def start(self, log: Path, surroundings: Surroundings | None = None) -> Command:
        """Starts it, or lets it go on."""
        return Command(self.arguments(), log, surroundings)

    def rows(self) -> int:
        """Rows of metrics so far."""
        try:
            return (self.folder / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def saved(self) -> list[int]:
        """The steps of its checkpoints, sorted."""
        return sorted(int(folder.name.removeprefix("step=")) for folder in self.checkpoints.glob("step=??????"))


def wait_for_start(command: Command, rng: random.Random) -> str:
    """Waits for a random moment before training has begun, most likely; says which."""
    seconds = rng.uniform(0.2, _SECONDS_OF_A_START)
    until(lambda: command.ended, seconds)
    return f"{seconds:.1f} s after the start"


def wait_for_row(command: Command, training: Training, rng: random.Random) -> str:
    """Waits for a random moment after a row of metrics that is not the last; says which."""
    number = rng.randint(1, STEPS // LOG_EVERY)
    return _delayed(command, lambda: training.rows() >= number, f"row {number}", LOG_EVERY, rng)


def wait_for_checkpoint(
    command: Command, training: Training, rng: random.Random, least: int = 0, most: int = STEPS - SAVE_EVERY
) -> str:
    """Waits for a random moment after the checkpoint of a random step; says which."""
    step = rng.randrange(least, most + 1, SAVE_EVERY)
    reached = lambda: bool(training.saved()) and training.saved()[-1] >= step  # noqa: E731
    return _delayed(command, reached, f"checkpoint {step}", SAVE_EVERY, rng)


def wait_anywhere(command: Command, training: Training, rng: random.Random, at_start: float = 0.2) -> str:
    """Waits for a random moment: with probability ``at_start`` one before training begins; says which."""
    draw = rng.random()
    if draw < at_start:
        return wait_for_start(command, rng)
    if draw < (1 + at_start) / 2:
        return wait_for_row(command, training, rng)
    return wait_for_checkpoint(command, training, rng)


def _delayed(command: Command, reached: Callable[[], bool], what: str, steps: int, rng: random.Random) -> str:
    seconds = rng.uniform(0, steps * _SECONDS_OF_A_STEP)
    if not until(lambda: reached() or command.ended, LIMIT, pause=0.003):
        return f"{what} did not come"
    if command.ended:
        return f"ended before {what}"
    time.sleep(seconds)
    return f"{what} + {seconds * 1000:.0f} ms"
