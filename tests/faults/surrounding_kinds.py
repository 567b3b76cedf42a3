"""Faults of what a training stands in: its data, its clock, its memory, who reads it; and one that comes every time."""

import os
import random
import signal

from tests.faults.kinds import Kind, Scene
from tests.faults.processes import Surroundings
from tests.faults.trainings import LIMIT, SAVE_EVERY, STEPS, Training, wait_anywhere
from tests.plugin.slow_parts import GONE, ORDER

_DAY = 86400


# At a step, by the training itself


def _at_a_step(what: str, rng: random.Random, *how: str) -> Surroundings:
    return Surroundings({ORDER: ":".join((what, str(rng.randrange(1, STEPS)), *how))})


def _told(scene: Scene) -> str:
    """What was ordered, without the path."""
    what, step, *_ = scene.command.surroundings.environment[ORDER].split(":")
    return f"{what} at step {step}"


def _vanish(rng: random.Random, training: Training) -> Surroundings:
    return _at_a_step("vanish", rng, str(training.data))


def _give_back_the_data(scene: Scene) -> None:
    _, step, folder = scene.command.surroundings.environment[ORDER].split(":")
    os.rename(folder + GONE, folder)
    scene.expect(scene.training.saved()[-1] == int(step) + 1, f"saved are {scene.training.saved()}")


def _jump(rng: random.Random, training: Training) -> Surroundings:
    return _at_a_step("clock", rng, str(rng.choice([-1, 1]) * rng.uniform(1, 400) * _DAY))


def _crash(rng: random.Random, training: Training) -> Surroundings:
    return _at_a_step("crash", rng)


def _crash_again_and_again(scene: Scene) -> str:
    """Several ranks: one restart for each checkpoint that it still gets to, and two that get nowhere."""
    step = int(scene.command.surroundings.environment[ORDER].split(":")[1])
    scene.command.wait(LIMIT)
    saved = scene.training.saved()
    scene.expect(not saved or saved[-1] <= step, f"it was to crash at step {step}, and has saved {saved}")
    if scene.training.variant.processes > 1:
        restarts = scene.command.output().count("starting all ranks again")
        scene.expect(2 <= restarts <= 2 + step // SAVE_EVERY + 1, f"{restarts} restarts")
        scene.expect("go on with: " in scene.command.output(), "it did not say how to go on")
    return _told(scene)


# A little shared memory


def _little_memory(rng: random.Random, training: Training) -> Surroundings:
    """Root only: elsewhere nothing is different."""
    size = rng.choice(["8k", "24k", "40k"])
    mount = 'mount -t tmpfs -o size="$1" none /dev/shm && shift && exec "$@"'
    return Surroundings(prefix=("unshare", "-m", "sh", "-c", mount, "sh", size) if os.geteuid() == 0 else ())


def _say_its_size(scene: Scene) -> str:
    status = scene.command.wait(LIMIT)
    advice = "data.workers" in scene.command.output()
    scene.expect(status == 0 or advice, "it did not say what to do")
    return f"/dev/shm of {scene.command.surroundings.prefix[-1] if scene.command.surroundings.prefix else 'any size'}"


# Nobody reads


def _stop_reading(scene: Scene) -> str:
    moment = wait_anywhere(scene.command, scene.training, scene.rng)
    scene.command.stop_reading()
    return moment


SURROUNDING_KINDS = (
    Kind(
        "all data vanishes",
        "saves, ends with 2 and one line; goes on once it is there again",
        _told,
        (2,),
        processes=(1,),
        workers=(0,),
        mend=_give_back_the_data,
        own_data=True,
        surroundings=_vanish,
    ),
    Kind("the clock jumps", "takes no notice", _told, (0,), surroundings=_jump),
    Kind(
        "a crash at one step, every time",
        "the launcher counts restarts without a new checkpoint, and gives up with 1; goes on once it is mended",
        _crash_again_and_again,
        (1, -signal.SIGKILL),
        surroundings=_crash,
    ),
    Kind(
        "a little /dev/shm",
        "hands batches over by pipe, or says in one line what to do and ends with 2",
        _say_its_size,
        (0, 2),
        workers=(1, 2),
        surroundings=_little_memory,
    ),
    Kind(
        "the reader of its output goes away",
        "goes on silently; before it trains it ends like any program",
        _stop_reading,
        (0, 128 + signal.SIGPIPE),
        surroundings=lambda rng, training: Surroundings(read=True),
    ),
)
