"""A small disk that can be filled, and a folder that cannot be written to."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEGABYTES = 16
"""Room for a run and its checkpoints, with some to spare."""
_FILLER = "filler"


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """``folder`` on a disk in memory of its own, while it lasts; yields False where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or not _done("mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m", "tmpfs", str(folder)):
        yield False
        return
    try:
        yield True
    finally:
        if not _done("umount", str(folder)):
            _done("umount", "--lazy", str(folder))


def _done(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def fill(folder: Path) -> None:
    """Leaves no room on the disk of ``folder``."""
    block = b"\0" * 4096
    with (folder / _FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            return


def make_room(folder: Path) -> None:
    """Takes back what ``fill`` wrote."""
    (folder / _FILLER).unlink(missing_ok=True)


def make_read_only(folder: Path) -> str:
    """Lets nothing be written into ``folder`` any more; says how."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        return "by its mode"
    if _done("mount", "--bind", str(folder), str(folder)) and _done("mount", "-o", "remount,ro,bind", str(folder)):
        return "mounted read-only"
    return "which this machine does not allow"


def make_writable(folder: Path) -> None:
    """Takes back what ``make_read_only`` did."""
    if os.geteuid() != 0:
        if folder.exists():
            folder.chmod(0o755)
    else:  # nothing where nothing is mounted; os.path.ismount does not see a folder that is mounted on itself
        _done("umount", "--lazy", str(folder))
