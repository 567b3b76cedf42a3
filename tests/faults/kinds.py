"""The kinds of faults: what each does to a training in a random moment, and what the run has to do about it."""

import random
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmlm.core.errors import STOPPED
from mmlm.core.stop import KILLED, SIGNALS
from tests.faults.processes import Command, Surroundings
from tests.faults.trainings import (
    LIMIT,
    NAN_STEP,
    SAVE_EVERY,
    Training,
    Variant,
    wait_anywhere,
    wait_for_checkpoint,
    wait_for_row,
)


@dataclass
class Scene:
    """A round as a fault sees it."""

    training: Training
    command: Command
    rng: random.Random
    folder: Path
    """Of the round, for what the fault leaves."""
    complaints: list[str] = field(default_factory=list)
    """What the run should not have done."""
    others: list[int | None] = field(default_factory=list)
    """Exit statuses of other commands that the fault started."""
    on_disk: bool = False
    """The run is on a small disk of its own."""
    must_say: str = ""
    """What the run has to tell when it goes on."""

    def expect(self, promise: bool, complaint: str) -> None:
        """Takes down what was not as promised."""
        if not promise:
            self.complaints.append(complaint)


Inject = Callable[[Scene], str]
"""Injects a fault in a random moment; returns which moment."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    name: str
    does: str
    """What the run does about it, for the table."""
    inject: Inject
    statuses: Collection[int]
    """Exit statuses that are right; 0 among them, for a fault that comes too late or that the run survives."""
    processes: Collection[int] = (1, 2)
    """Numbers of ranks to draw from."""
    workers: Collection[int] = (0, 0, 1)
    """Numbers of data workers to draw from."""
    mend: Callable[[Scene], None] = lambda scene: None
    """What is done once the command has ended, before it goes on."""
    nan: bool = False
    small_disk: bool = False
    """The run is to be on a disk of its own, where one can be mounted."""
    other_ranks: bool = False
    """It goes on with another number of ranks, and so only nearly the same."""
    own_data: bool = False
    """The run has a copy of the data for itself."""
    surroundings: Callable[[random.Random, Training], Surroundings] = lambda rng, training: Surroundings()
    """In what the command with the fault runs."""

    def variant(self, rng: random.Random) -> Variant:
        """What a round of it trains."""
        return Variant(rng.choice(list(self.processes)), self.nan, not self.other_ranks)

    def resumed(self, training: Training) -> Training:
        """What goes on after the fault."""
        if not self.other_ranks:
            return training
        return replace(training, variant=replace(training.variant, processes=3 - training.variant.processes))


# Signals


def _signal(number: signal.Signals) -> Inject:
    def inject(scene: Scene) -> str:
        moment = wait_anywhere(scene.command, scene.training, scene.rng)
        scene.command.send(number)
        return moment

    return inject


def _to_a_rank(do: Callable[[Scene, int], str]) -> Inject:
    """``do(scene, pid)`` to one of the ranks; says what was done."""

    def inject(scene: Scene) -> str:
        moment = wait_anywhere(scene.command, scene.training, scene.rng)
        ranks = scene.command.ranks()
        if not ranks:
            return f"{moment}, no rank there"
        chosen = scene.rng.choice(sorted(ranks))
        return f"{moment}, rank {chosen}{do(scene, ranks[chosen])}"

    return inject


def _kill_a_rank(scene: Scene, pid: int) -> str:
    scene.command.send(signal.SIGKILL, [pid])
    return ""


def _kill_all(scene: Scene) -> str:
    moment = wait_anywhere(scene.command, scene.training, scene.rng)
    scene.command.kill()
    return moment


def _stop_a_rank(scene: Scene, pid: int) -> str:
    seconds = scene.rng.uniform(0.5, 4)
    scene.command.send(signal.SIGSTOP, [pid])
    time.sleep(seconds)
    scene.command.send(signal.SIGCONT, [pid])
    return f" for {seconds:.1f} s"


def _kill_a_data_worker(scene: Scene) -> str:
    # They are there from the first step on, which comes after a checkpoint of step 0.
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng, SAVE_EVERY)
    workers = scene.command.data_workers()
    if not workers:
        return f"{moment}, no data worker there"
    scene.command.send(signal.SIGKILL, [scene.rng.choice(workers)])
    return f"{moment}, 1 of {len(workers)} workers"


def _stop_or_kill(scene: Scene) -> str:
    if scene.rng.random() < 0.5:
        scene.command.send(signal.SIGTERM)
        return "SIGTERM"
    scene.command.kill()
    return "SIGKILL"


def _change_the_ranks(scene: Scene) -> str:
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng)
    return f"{moment}, {_stop_or_kill(scene)}"


def _stop_around_the_nan(scene: Scene) -> str:
    step = scene.rng.choice([NAN_STEP - 1, NAN_STEP + 1]) // SAVE_EVERY * SAVE_EVERY
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng, step, step)
    return f"{moment}, {_stop_or_kill(scene)}"


def _two_at_once(scene: Scene) -> str:
    moment = wait_anywhere(scene.command, scene.training, scene.rng, at_start=0.1)
    victims = [*scene.command.ranks().values(), *scene.command.data_workers()]
    asked = scene.rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
    first, second = (asked, [scene.command.pid]), (signal.SIGKILL, [scene.rng.choice(victims or [scene.command.pid])])
    for number, pids in scene.rng.sample([first, second], 2):
        scene.command.send(number, pids)
    return f"{moment}, {asked.name} and SIGKILL of one of {len(victims)} processes"


# A second run


def _start_a_second(scene: Scene) -> str:
    if scene.training.variant.processes == 1 and scene.rng.random() < 0.5:
        return _second_while_training(scene)
    seconds = scene.rng.uniform(0, 1.5)
    time.sleep(seconds)
    second = scene.training.start(scene.folder / "second.log")
    statuses = [scene.command.wait(LIMIT), second.wait(LIMIT)]
    scene.others.append(statuses[1])
    for command, status in zip((scene.command, second), statuses, strict=True):
        _expect_refusal_or_end(scene, command, status)
    scene.expect(0 in statuses, "none of the two trained")
    return f"two starts, {seconds:.1f} s apart"


def _second_while_training(scene: Scene) -> str:
    """The first stands still meanwhile: a start takes longer than the whole training."""
    moment = wait_for_row(scene.command, scene.training, scene.rng)
    if scene.command.ended:
        return moment
    scene.command.send(signal.SIGSTOP)
    before = {path: path.read_bytes() for path in scene.training.checkpoints.rglob("*") if path.is_file()}
    second = scene.training.start(scene.folder / "second.log")
    status = second.wait(LIMIT)
    scene.others.append(status)
    scene.expect(status == 2, f"the second run ended with {status}")
    _expect_refusal_or_end(scene, second, status)
    after = {path: path.read_bytes() for path in scene.training.checkpoints.rglob("*") if path.is_file()}
    scene.expect(before == after, "the second run changed checkpoints")
    scene.command.send(signal.SIGCONT)
    return f"{moment}, first stopped meanwhile"


def _expect_refusal_or_end(scene: Scene, command: Command, status: int | None) -> None:
    refused = status == 2 and "is being written by another run" in command.output()
    scene.expect(refused or status == 0, f"ended with status {status} instead of being refused")


# What the kinds are

_STOPS = "saves at the next step, ends with 75"
AT_START = (*(-number for number in SIGNALS), *(KILLED + number for number in SIGNALS))
"""Before there is anything to save a signal ends the run: by the operating system, or as it would."""

PROCESS_KINDS = (
    *(
        Kind(number.name, _STOPS, _signal(number), (0, STOPPED, *AT_START))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    ),
    Kind(
        "SIGKILL of a rank",
        "the launcher starts all ranks again from the last checkpoint",
        _to_a_rank(_kill_a_rank),
        (0,),
        processes=(2,),
    ),
    Kind(
        "SIGKILL of the parent",
        "the ranks save and end by themselves",
        _signal(signal.SIGKILL),
        (0, -signal.SIGKILL),
        processes=(2,),
    ),
    Kind("SIGKILL of all", "goes on from the last checkpoint", _kill_all, (0, -signal.SIGKILL)),
    Kind("SIGSTOP of a rank, SIGCONT", "waits and goes on", _to_a_rank(_stop_a_rank), (0,)),
    Kind(
        "SIGKILL of a data worker",
        "starts another, which prepares the batch again",
        _kill_a_data_worker,
        (0,),
        workers=(1,),
    ),
    Kind(
        "two faults at once",
        "a signal, and SIGKILL of a rank or data worker: saves if all ranks are left, else goes on from the checkpoint",
        _two_at_once,
        (0, STOPPED, -signal.SIGKILL, *AT_START),
        workers=(0, 1),
    ),
    Kind(
        "another number of ranks",
        "goes on at the same example; equal within 1e-5, since sums are made in another order",
        _change_the_ranks,
        (0, STOPPED, -signal.SIGKILL),
        other_ranks=True,
    ),
    Kind(
        "a second run in the folder", "one of them is refused with 2, the other is untouched", _start_a_second, (0, 2)
    ),
    Kind(
        "NaN at a step, stopped around it",
        "leaves the update out, once, whenever it is stopped",
        _stop_around_the_nan,
        (0, STOPPED, -signal.SIGKILL),
        nan=True,
    ),
)
