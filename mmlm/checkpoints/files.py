"""The files of a checkpoint: their names, checksums and manifest, and writing so that a crash leaves no half of one.

What the files hold is the business of ``mmlm/checkpoints/checkpoint.py``.
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
"""The folder, inside of a checkpoint, of tensors that several ranks hold parts of."""
SUFFIX = ".safetensors"
_FOLDER = re.compile(r"step=(\d+)(\.replaced)?")
_SAVING, _DELETING = ".saving-", ".deleting-"


class CorruptCheckpointError(UserError):
    """A checkpoint that is not what was written: truncated, altered or incomplete."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"checkpoint {folder} is damaged: {reason}")
        self.folder = folder
        self.reason = reason

    def __reduce__(self) -> tuple[type["CorruptCheckpointError"], tuple[Path, str]]:
        return CorruptCheckpointError, (self.folder, self.reason)


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` records, besides the time of saving."""

    step: int
    files: Mapping[str, Mapping[str, Any]]
    """``bytes`` and ``sha256`` of each file by its path inside of the checkpoint."""
    aliases: Mapping[str, Mapping[str, str]]
    """Second name -> first name of tied tensors among the sharded ones, by group."""
    saved: float
    """Seconds since the epoch."""


# Folders


def folders(root: Path) -> list[Path]:
    """All checkpoints in ``root``, in no order, damaged ones too."""
    return [folder for folder in root.glob("step=*") if _FOLDER.fullmatch(folder.name) and folder.is_dir()]


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name. Raises ValueError for another name."""
    found = _FOLDER.fullmatch(folder.name)
    if found is None:
        raise ValueError(f"'{folder.name}' is not the name of a checkpoint")
    return int(found.group(1))


def saved_at(folder: Path) -> float:
    """Seconds since the epoch; a checkpoint without a readable manifest counts as the oldest."""
    try:
        return read_manifest(folder).saved
    except CorruptCheckpointError:
        return 0.0


def begin(root: Path, step: int) -> Path:
    """Makes the temporary folder that becomes the checkpoint of ``step``, after removing what a crash left."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".*"):
        if leftover.name.startswith((_SAVING, _DELETING)):
            shutil.rmtree(leftover)
    saving = saving_folder(root, step)
    saving.mkdir()
    return saving


def saving_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is written before it gets its name."""
    return root / f"{_SAVING}step={step:06d}"


def finish(saving: Path, step: int, aliases: Mapping[str, Mapping[str, str]]) -> Path:
    """Adds the manifest, waits until all is on the disk, and gives the folder its name, which is returned."""
    files = sorted(file for file in saving.rglob("*") if file.is_file())
    entries = {
        file.relative_to(saving).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files
    }
    record = {"step": step, "saved": time.time(), "files": entries} | ({"aliases": aliases} if aliases else {})
    write_json(saving / MANIFEST, record | {"checksum": _checksum(record)})
    for path in (*saving.rglob("*"), saving):
        flush(path)
    folder = saving.with_name(saving.name.removeprefix(_SAVING))
    replaced = folder.with_name(f"{folder.name}.replaced")
    if folder.exists():
        # A folder cannot be renamed over another: between these two lines `.replaced` is the valid one.
        remove(replaced)
        folder.rename(replaced)
    saving.rename(folder)
    flush(folder.parent)
    remove(replaced)
    return folder


def abandon(saving: Path) -> None:
    """Gives back the space of a checkpoint that could not be written, and its name to the one it was to replace."""
    shutil.rmtree(saving, ignore_errors=True)
    folder = saving.with_name(saving.name.removeprefix(_SAVING))
    replaced = folder.with_name(f"{folder.name}.replaced")
    if replaced.exists() and not folder.exists():
        with suppress(OSError):
            replaced.rename(folder)


def remove(folder: Path) -> None:
    """Deletes a checkpoint so that no half of it is ever taken for one."""
    deleting = folder.with_name(f"{_DELETING}{folder.name}")
    shutil.rmtree(deleting, ignore_errors=True)  # what a crash left
    if folder.exists():
        folder.rename(deleting)
        shutil.rmtree(deleting)


# Checksums


def read_manifest(folder: Path) -> Manifest:
    """What the manifest records. Raises CorruptCheckpointError, or UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such checkpoint")
    file = folder / MANIFEST
    try:
        record = json.loads(file.read_text())
        intact = record.pop("checksum", None) in (None, _checksum(record))
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
    """Compares the files (or those of a ``group`` of weights only) with the manifest, which is returned.

    Raises CorruptCheckpointError, or UserError if there is no such folder.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        if group is not None and name != f"{group}{SUFFIX}" and not name.startswith(f"{SHARDED}/{group}/"):
            continue
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpointError(folder, f"{name} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise CorruptCheckpointError(folder, f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
        if sha256(file) != entry["sha256"]:
            raise CorruptCheckpointError(folder, f"{name} does not have the checksum it was written with")
    return manifest


def _checksum(record: Mapping[str, object]) -> str:
    """The SHA-256 of the manifest's other entries, hexadecimal."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# Writing


def write_json(file: Path, record: Mapping[str, object]) -> None:
    """Writes JSON, refusing NaN and infinity (ValueError), which no other reader of JSON takes."""
    file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(root: Path, step: int) -> Iterator[None]:
    """Turns an error of the disk while the checkpoint of ``step`` is written into a UserError that says how to go on.

    It names the last checkpoint in ``root``, which is whole: what was being written is another folder.
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
            f"checkpoint {root / f'step={step:06d}'} could not be written ({_said(reason)}); {before}; "
            f"{_ADVICE.get(reason.errno, 'look at that disk')}, then give the same command again"
        ) from error


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make that folder writable"),
}


def _said(error: OSError) -> str:
    return error.strerror or str(error)


def _disk_error(error: BaseException) -> OSError | None:
    """The error of the operating system behind an exception, if that is what it is.

    ``torch.save`` raises a RuntimeError while it handles the OSError; safetensors has its number in the message only.
    """
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return OSError(int(found.group(1)), os.strerror(int(found.group(1)))) if found else None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause
