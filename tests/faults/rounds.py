"""One round: a fault in a training, the same command until it ends well, and the comparison with a run without one."""

import fcntl
import os
import random
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mmlm.core.errors import STOPPED, USER_ERROR
from tests.conftest import write_shapes
from tests.faults.compare import differences
from tests.faults.disk import make_writable, small_disk
from tests.faults.kinds import Kind, Scene
from tests.faults.processes import Command
from tests.faults.trainings import LIMIT, Training, Variant

_GONE_SECONDS = 90.0
"""Within which everything that a command started has to end by itself."""
_OTHER_RANKS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Round:
    """What came of one."""

    round: int
    kind: str
    processes: int
    workers: int
    moment: str
    statuses: Sequence[int | None]
    """Of the command with the fault (None: it had to be killed), of others beside it, and of the one that went on."""
    resumed: Sequence[int]
    """The steps that were resumed at, restarts by the launcher included."""
    seconds: float
    equal: bool
    complaints: Sequence[str]
    """What was not as it should be; empty if all was."""


def kind_of(number: int, seed: int, kinds: Sequence[Kind]) -> Kind:
    """The kind of round ``number`` (from 0): all of them in a new order, again and again."""
    cycle, place = divmod(number, len(kinds))
    return random.Random(f"{seed}/order/{cycle}").sample(kinds, len(kinds))[place]


def play(number: int, kind: Kind, seed: int, out: Path) -> Round:
    """Plays round ``number``. Its folder is left behind where it failed."""
    begun, rng = time.monotonic(), random.Random(f"{seed}/{number}/{kind.name}")
    folder = out / "rounds" / f"{number:03d}"
    variant, workers = kind.variant(rng), rng.choice(list(kind.workers))
    data = folder / "shapes" if kind.own_data else _data(out)
    training = Training(variant, data, folder / "runs", workers)
    make_writable(training.checkpoints)  # a round that was killed may have left it otherwise
    shutil.rmtree(folder, ignore_errors=True)
    training.runs.mkdir(parents=True)
    if kind.own_data:
        shutil.copytree(_data(out), data)
    reference = _reference(variant, out)
    with ExitStack() as stack:
        on_disk = kind.small_disk and rng.random() < 0.5 and stack.enter_context(small_disk(training.runs))
        stack.callback(make_writable, training.checkpoints)
        started = training.start(folder / "first.log", kind.surroundings(rng, training))
        command = stack.enter_context(_killed_in_the_end(started))
        scene = Scene(training, command, rng, folder, on_disk=on_disk)
        moment = kind.inject(scene)
        statuses = [_end(scene, kind), *scene.others]
        kind.mend(scene)
        statuses.append(_go_on(scene, kind))
        if not scene.complaints:
            tolerance = _OTHER_RANKS_TOLERANCE if kind.other_ranks else 0.0
            scene.complaints += differences(reference, training.folder, tolerance)[:10]
        if scene.complaints and on_disk:
            shutil.copytree(training.runs, folder / "kept")
        resumed = _resumed(folder)
    if not scene.complaints:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - begun, 1)
    equal, complaints = not scene.complaints, scene.complaints
    return Round(number, kind.name, variant.processes, workers, moment, statuses, resumed, seconds, equal, complaints)


class _killed_in_the_end:  # noqa: N801 - used like a function
    """No process is left behind, whatever happens."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def __enter__(self) -> Command:
        return self._command

    def __exit__(self, *error: object) -> None:
        self._command.kill()
        self._command.stop_reading()


def _end(scene: Scene, kind: Kind) -> int | None:
    """The exit status of the command with the fault, once the last of its processes is gone."""
    status = scene.command.wait(LIMIT)
    scene.expect(status in kind.statuses, f"ended with status {status}")
    if status in (0, USER_ERROR, STOPPED):
        scene.expect("Traceback" not in scene.command.output(), "a traceback")
    scene.expect(scene.command.is_gone(_GONE_SECONDS), f"processes were left {_GONE_SECONDS:g} s after the end")
    return status


def _go_on(scene: Scene, kind: Kind) -> int | None:
    """The exit status of the same command again, without a fault: it has to be 0."""
    command = kind.resumed(scene.training).start(scene.folder / "resumed.log")
    with _killed_in_the_end(command):
        status = command.wait(LIMIT)
        scene.expect(status == 0, f"the same command again ended with status {status}")
        scene.expect(command.is_gone(_GONE_SECONDS), "processes of the same command again were left")
    scene.expect(scene.must_say in command.output(), f"the same command again did not say '{scene.must_say}'")
    hidden = [name for name in os.listdir(scene.training.checkpoints) if name.startswith(".")]
    scene.expect(not hidden, f"left in the checkpoints: {hidden}")
    return status


def _resumed(folder: Path) -> list[int]:
    logs = [folder / name for name in ("first.log", "second.log", "resumed.log")]
    text = "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
    return [int(step) for step in re.findall(r"resumed at step (\d+)", text)]


def _data(out: Path) -> Path:
    folder = (out / "shapes").resolve()
    return folder if folder.exists() else write_shapes(folder)


def _reference(variant: Variant, out: Path) -> Path:
    """The folder of an uninterrupted run without data workers; trained once. Raises RuntimeError if it fails."""
    folder = out / "references" / variant.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "making").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # rounds may be played side by side
        training = Training(variant, _data(out), folder.resolve())
        if not (training.folder / "report.html").exists():
            command = training.start(folder / "log.txt")
            with _killed_in_the_end(command):
                status = command.wait(LIMIT)
            if status != 0:
                raise RuntimeError(f"the uninterrupted run ended with {status}:\n{command.output()}")
    return training.folder
