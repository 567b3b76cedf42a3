"""Faults of files and disks."""

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from mmlm.checkpoints.checkpoint import latest_checkpoint
from mmlm.checkpoints.files import MANIFEST
from mmlm.core.errors import UserError
from mmlm.record.folder import METRICS
from tests.faults.disk import fill, make_read_only, make_room, make_writable
from tests.faults.kinds import Kind, Scene
from tests.faults.trainings import LIMIT, SAVE_EVERY, STEPS, wait_for_checkpoint, wait_for_row

_MOST_BYTES = 64 * 2**10
"""A file of a checkpoint is larger, one of metrics is not."""


# Damaged checkpoints


def _newest_file(scene: Scene) -> Path:
    """A random file of the newest checkpoint."""
    folder = scene.training.checkpoints / f"step={scene.training.saved()[-1]:06d}"
    return scene.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def _truncate(scene: Scene) -> str:
    moment = _killed_with_two_checkpoints(scene)
    file = _newest_file(scene)
    length = scene.rng.randrange(file.stat().st_size)
    os.truncate(file, length)
    scene.must_say = "is damaged"
    return f"{moment}, {file.parent.name}/{file.name} cut to {length} bytes"


def _flip(scene: Scene) -> str:
    moment = _killed_with_two_checkpoints(scene)
    file = _newest_file(scene)
    data = bytearray(file.read_bytes())
    byte, bit = scene.rng.randrange(len(data)), scene.rng.randrange(8)
    data[byte] ^= 1 << bit
    file.write_bytes(data)
    if file.name != MANIFEST:  # where a bit may change nothing but a space, or the time of saving
        scene.must_say = "is damaged"
    return f"{moment}, bit {bit} of byte {byte} of {file.parent.name}/{file.name}"


def _killed_with_two_checkpoints(scene: Scene) -> str:
    """So that there is one to fall back to: not step 0, which is kept only as long as it is the best."""
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng, 2 * SAVE_EVERY)
    scene.command.kill()
    scene.command.wait(LIMIT)
    return moment


# A save that is cut off


def _kill_while_saving(scene: Scene) -> str:
    """Stops rank 0 when a temporary folder is seen, to look whether it is still there, and kills all then."""
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng, most=STEPS - 3 * SAVE_EVERY)
    rank_0 = scene.command.ranks().get(0)
    while rank_0 is not None and not scene.command.ended:
        if _leftovers(scene.training.checkpoints):
            scene.command.send(signal.SIGSTOP, [rank_0])
            found = _leftovers(scene.training.checkpoints)
            if found:
                scene.command.kill()
                return f"{moment}, then in {found[0]}"
            scene.command.send(signal.SIGCONT, [rank_0])
    return f"{moment}, no save was met"


def _leftovers(root: Path) -> list[str]:
    with suppress(OSError):
        return [name for name in os.listdir(root) if name.startswith(".saving-")]
    return []


# A full disk


def _fill_the_disk(scene: Scene) -> str:
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng, most=STEPS - 2 * SAVE_EVERY)
    if scene.on_disk:
        fill(scene.training.runs)
        return f"{moment}, disk"
    for pid in scene.command.ranks().values():
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_MOST_BYTES, _MOST_BYTES))
    return f"{moment}, file size limit"


def _make_room(scene: Scene) -> None:
    """And looks whether all that had been saved is whole."""
    if scene.on_disk:
        make_room(scene.training.runs)
    try:
        newest, damaged = latest_checkpoint(scene.training.checkpoints)
    except UserError as error:
        newest, damaged = None, [str(error)]
    scene.expect(newest is not None and not damaged, f"checkpoints after the full disk: {newest}, {damaged}")
    scene.expect(not _leftovers(scene.training.checkpoints), "half a checkpoint was left")


def _no_room_for_metrics(scene: Scene) -> str:
    """No file may get larger than that of the metrics is, so that no row can be written."""
    moment = wait_for_row(scene.command, scene.training, scene.rng)
    for pid in scene.command.ranks().values():
        with suppress(OSError):
            size = (scene.training.folder / METRICS).stat().st_size
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))
    return moment


# A folder that may not be written to


def _read_only(scene: Scene) -> str:
    moment = wait_for_checkpoint(scene.command, scene.training, scene.rng, most=STEPS - 2 * SAVE_EVERY)
    return f"{moment}, {make_read_only(scene.training.checkpoints)}"


def _writable(scene: Scene) -> None:
    make_writable(scene.training.checkpoints)
    scene.expect(not _leftovers(scene.training.checkpoints), "half a checkpoint was left")


FILE_KINDS = (
    Kind(
        "newest checkpoint truncated",
        "says so and goes on from the one before",
        _truncate,
        (0, -signal.SIGKILL),
    ),
    Kind("one bit of the newest checkpoint flipped", "says so and goes on from the one before", _flip, (0, -9)),
    Kind(
        "SIGKILL of all while saving",
        "removes the half and goes on from the checkpoint before",
        _kill_while_saving,
        (0, -signal.SIGKILL),
    ),
    Kind(
        "full disk while saving",
        "ends with 2, the checkpoints before are whole; goes on once there is room",
        _fill_the_disk,
        (0, 2),
        mend=_make_room,
        small_disk=True,
    ),
    Kind(
        "metrics on a full disk", "ends with 2 and one line; goes on once there is room", _no_room_for_metrics, (0, 2)
    ),
    Kind(
        "checkpoints become read-only",
        "ends with 2 and one line; goes on once they can be written",
        _read_only,
        (0, 2),
        mend=_writable,
    ),
)
