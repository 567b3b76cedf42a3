"""The folder of a checkpoint: names, checksums, manifest, and steps of writing that leave no half of it after a crash.

What is written into the files is decided in ``checkpoints/checkpoint.py``.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmlm.core.errors import UserError

MANIFEST = "manifest.json"
STATE = "state.pt"
SHARDED = "sharded"
"""Folder inside a checkpoint for the tensors that are sharded over ranks."""
SUFFIX = ".safetensors"
_FOLDER = re.compile(r"step=(\d+)(\.replaced)?")
_SAVING, _DELETING = ".saving-", ".deleting-"
"""Prefixes of folders that are no checkpoints (yet, or any more); ``begin`` removes those that a crash has left."""


class CorruptCheckpointError(UserError):
    """A checkpoint that differs from what was written: truncated, altered or incomplete."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"checkpoint {folder} is damaged: {reason}")
        self.folder = folder
        self.reason = reason

    def __reduce__(self) -> tuple[type["CorruptCheckpointError"], tuple[Path, str]]:
        # Errors travel between ranks by pickle, whose default calls the class with the joined message alone.
        return CorruptCheckpointError, (self.folder, self.reason)


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``."""

    step: int
    files: Mapping[str, Mapping[str, Any]]
    """Path inside the checkpoint -> ``bytes`` and ``sha256`` of that file."""
    aliases: Mapping[str, Mapping[str, str]]
    """Group -> second name -> first name, for tied tensors among the sharded ones."""
    saved: float
    """Time of saving, in seconds since the epoch."""


# Folders


def folders(root: Path) -> list[Path]:
    """All checkpoints in ``root``, also damaged ones, in no particular order."""
    return [folder for folder in root.glob("step=*") if _FOLDER.fullmatch(folder.name) and folder.is_dir()]


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder. Raises ValueError if it is not such a name."""
    found = _FOLDER.fullmatch(folder.name)
    if found is None:
        raise ValueError(f"'{folder.name}' is not the name of a checkpoint")
    return int(found.group(1))


def saved_at(folder: Path) -> float:
    """Time of saving in seconds since the epoch; 0, hence the oldest, without a readable manifest."""
    try:
        return read_manifest(folder).saved
    except CorruptCheckpointError:
        return 0.0


def begin(root: Path, step: int) -> Path:
    """Makes the temporary folder that becomes the checkpoint of ``step``; removes those that a crash has left."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".*"):
        if leftover.name.startswith((_SAVING, _DELETING)):
            shutil.rmtree(leftover)
    saving = saving_folder(root, step)
    saving.mkdir()
    return saving


def saving_folder(root: Path, step: int) -> Path:
    """The temporary folder in which the checkpoint of ``step`` is written."""
    return root / f"{_SAVING}step={step:06d}"


def finish(saving: Path, step: int, aliases: Mapping[str, Mapping[str, str]]) -> Path:
    """Completes a checkpoint: writes the manifest, waits for the disk, renames the folder. Returns the final folder."""
    # Sizes and checksums are read back from the files, those of other ranks included.
    files = sorted(file for file in saving.rglob("*") if file.is_file())
    entries = {
        file.relative_to(saving).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files
    }
    record = {"step": step, "saved": time.time(), "files": entries} | ({"aliases": aliases} if aliases else {})
    write_json(saving / MANIFEST, record | {"checksum": checksum(record)})
    # Contents first, then the name: a rename may reach the disk before the bytes of the files that it moves.
    for path in (*saving.rglob("*"), saving):
        flush(path)
    folder = saving.with_name(saving.name.removeprefix(_SAVING))
    replaced = folder.with_name(f"{folder.name}.replaced")
    if folder.exists():
        # A folder cannot be renamed over another. Between the next two renames, `.replaced` is the valid checkpoint,
        # and `latest_checkpoint` finds it there.
        remove(replaced)
        folder.rename(replaced)
    saving.rename(folder)
    flush(folder.parent)  # the rename itself is an entry of the parent
    remove(replaced)
    return folder


def abandon(saving: Path) -> None:
    """Removes a checkpoint that could not be written; one that it was about to replace gets its name back."""
    shutil.rmtree(saving, ignore_errors=True)
    folder = saving.with_name(saving.name.removeprefix(_SAVING))
    replaced = folder.with_name(f"{folder.name}.replaced")
    if replaced.exists() and not folder.exists():
        with suppress(OSError):
            replaced.rename(folder)


def remove(folder: Path) -> None:
    """Deletes a checkpoint. It is renamed first, so that a crash leaves no partly deleted folder with a valid name."""
    deleting = folder.with_name(f"{_DELETING}{folder.name}")
    shutil.rmtree(deleting, ignore_errors=True)  # left by a crash
    if folder.exists():
        folder.rename(deleting)
        shutil.rmtree(deleting)


# Checksums


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest. Raises CorruptCheckpointError if it is damaged, and UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such checkpoint")
    file = folder / MANIFEST
    try:
        record = json.loads(file.read_bytes())
        # The manifest has a checksum of its own: with a changed checksum in it, an intact file would count as damaged.
        intact = record.pop("checksum", None) in (None, checksum(record))
        aliases = {group: dict(names) for group, names in record.get("aliases", {}).items()}
        manifest = Manifest(int(record["step"]), dict(record["files"]), aliases, float(record["saved"]))
        complete = STATE in manifest.files and all(
            {"bytes", "sha256"} <= set(entry) for entry in manifest.files.values()
        )
    except FileNotFoundError:
        raise CorruptCheckpointError(folder, f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptCheckpointError(folder, f"{MANIFEST} cannot be read") from None
    if not intact:
        raise CorruptCheckpointError(folder, f"{MANIFEST} does not have the checksum it was written with")
    if not complete or (_FOLDER.fullmatch(folder.name) and manifest.step != step_of(folder)):
        raise CorruptCheckpointError(folder, f"{MANIFEST} does not belong to it")
    return manifest


def verify(folder: Path, group: str | None = None) -> Manifest:
    """Compares the files (of one ``group`` of weights, or all) with the manifest; returns the manifest.

    Raises CorruptCheckpointError if a file differs, and UserError if there is no such folder.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        if group is not None and not _is_of(name, group):
            continue
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpointError(folder, f"{name} is missing")
        # The size first: a truncated file is found without reading it.
        if file.stat().st_size != entry["bytes"]:
            raise CorruptCheckpointError(folder, f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
        if sha256(file) != entry["sha256"]:
            raise CorruptCheckpointError(folder, f"{name} does not have the checksum it was written with")
    return manifest


def digest_of(folder: Path, group: str) -> str:
    """What one group of weights is known by: equal for equal files. Reads the manifest only; raises as that does."""
    files = read_manifest(folder).files
    return checksum({name: entry["sha256"] for name, entry in files.items() if _is_of(name, group)})[:_DIGITS]


def _is_of(name: str, group: str) -> bool:
    """Whether a file of a checkpoint holds weights of the group."""
    return name == f"{group}{SUFFIX}" or name.startswith(f"{SHARDED}/{group}/")


_DIGITS = 16
"""Hexadecimal digits of ``digest_of``."""


def checksum(record: Mapping[str, object]) -> str:
    """The SHA-256, in hexadecimal, of what a manifest (or another record) holds besides its checksum."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# Writing


def write_json(file: Path, record: Mapping[str, object]) -> None:
    """Writes JSON. Raises ValueError for NaN and infinity, which Python would write and other readers refuse."""
    file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def flush(path: Path) -> None:
    """Waits until the content of a file, or the entries of a folder, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(root: Path, step: int) -> Iterator[None]:
    """Context for writing the checkpoint of ``step``: turns an error of the disk into a UserError with advice.

    The message names the newest checkpoint in ``root``, which is intact because another folder was being written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        earlier = max(folders(root), key=lambda folder: (saved_at(folder), step_of(folder)), default=None)
        before = f"{earlier.name} is intact" if earlier else "there is none before it"
        raise UserError(
            f"checkpoint {root / f'step={step:06d}'} could not be written ({reason.strerror or reason}); {before}; "
            f"{_ADVICE.get(reason.errno or 0, 'look at that disk')}, then give the same command again"
        ) from error


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make that folder writable"),
}
"""Number of an error of the operating system -> what to do about it."""


def _disk_error(error: BaseException) -> OSError | None:
    """The OSError behind an exception, such as a full disk; None if another kind of error is behind it.

    ``torch.save`` raises a RuntimeError while it handles the OSError, which is thus its context. safetensors, written
    in Rust, gives the number of the error in the message only.
    """
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return OSError(int(found.group(1)), os.strerror(int(found.group(1)))) if found else None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause
