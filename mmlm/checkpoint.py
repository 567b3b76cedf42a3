"""Checkpoints: written whole or not at all, verified when they are read.

    checkpoints/
      step=000500/
        model.safetensors   one file for each named group of weights (``model``, ``ema``)
        state.pt            everything else a resumed run needs: optimizer, schedule, random states, data position
        manifest.json       step, time, and size and SHA-256 of the files above; written last
      best.json             which folder is best, and its score

A checkpoint is written into a temporary folder, flushed to disk and renamed, so that a crash leaves the old ones as
they were. One flipped bit loads silently from safetensors and from ``torch.load``: the manifest's checksums do not let
it. Only one process writes (rank 0).
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.errors import UserError
from mmlm.weights import Weights, read_weights, save_weights

_MANIFEST = "manifest.json"
_STATE = "state.pt"
_BEST = "best.json"
_FOLDER = re.compile(r"step=(\d+)(\.replaced)?")
_TEMPORARY = (".saving-", ".deleting-")


class CorruptCheckpointError(UserError):
    """A checkpoint that is not what was written: truncated, altered or incomplete."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"checkpoint {folder} is damaged: {reason}")
        self.folder = folder
        self.reason = reason

    def __reduce__(self) -> tuple[type["CorruptCheckpointError"], tuple[Path, str]]:
        return CorruptCheckpointError, (self.folder, self.reason)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, on the CPU."""

    step: int
    """Optimizer steps taken."""
    weights: Mapping[str, Weights]
    """Each group of weights by name (``model``, ``ema``). Tied names hold the same tensor again."""
    state: Mapping[str, object]


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run."""

    folder: Path
    step: int
    metric: str
    score: float


def save_checkpoint(root: Path, step: int, weights: Mapping[str, Weights], state: Mapping[str, object]) -> Path:
    """Writes ``root/step=<step>`` atomically and returns that folder. An older one of the same step is replaced.

    Each group of ``weights`` becomes a safetensors file: two names of one tensor (tied weights) are stored once with
    the second name on record, other shared memory is copied. ``state`` may hold tensors, numbers, strings, bytes, None
    and lists, tuples, dicts of them (what ``torch.load(weights_only=True)`` reads); anything else is a TypeError, so
    that no run ends in a checkpoint that cannot be read.
    """
    _check_state(state, "state")
    root.mkdir(parents=True, exist_ok=True)
    for leftover in _temporary(root):
        shutil.rmtree(leftover)
    folder = root / f"step={step:06d}"
    saving = root / f"{_TEMPORARY[0]}{folder.name}"
    saving.mkdir()
    for group, tensors in weights.items():
        save_weights(tensors, saving / f"{group}.safetensors")
    torch.save(dict(state), saving / _STATE)
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(saving.iterdir())}
    _write_json(saving / _MANIFEST, {"step": step, "saved": time.time(), "files": files})
    for file in saving.iterdir():
        _flush(file)
    _flush(saving)
    replaced = root / f"{folder.name}.replaced"
    if folder.exists():
        # A folder cannot be renamed over another: between these two lines `.replaced` is the valid one.
        _remove(replaced)
        folder.rename(replaced)
    saving.rename(folder)
    _flush(root)
    _remove(replaced)
    return folder


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verifies a checkpoint and reads all of it. Raises CorruptCheckpointError, or UserError if there is none."""
    manifest = _verify(folder)
    files = manifest["files"]
    weights = {file.removesuffix(".safetensors"): read_weights(folder / file) for file in files if file != _STATE}
    return Checkpoint(manifest["step"], weights, torch.load(folder / _STATE, map_location="cpu", weights_only=True))


def load_weights(folder: Path, group: str = "model") -> dict[str, Tensor]:
    """Verifies and reads one group of weights only, on the CPU. Raises CorruptCheckpointError or UserError."""
    file = f"{group}.safetensors"
    files = _manifest(folder)["files"]
    if file not in files:
        groups = ", ".join(name.removesuffix(".safetensors") for name in files if name != _STATE)
        raise UserError(f"checkpoint {folder} has no '{group}' weights; there are: {groups}")
    _verify(folder, only=file)
    return read_weights(folder / file)


def latest_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """The intact checkpoint of the highest step, and a message for each damaged one that was passed over.

    ``None`` if there are no checkpoints at all. Raises UserError if there are some but every one is damaged: starting
    again from nothing has to be the user's decision.
    """
    messages = []
    # The replacing folder before the replaced one of the same step.
    for folder in sorted(_folders(root), key=lambda folder: (_step(folder), folder.suffix == ""), reverse=True):
        try:
            _verify(folder)
        except CorruptCheckpointError as error:
            messages.append(f"{error}; falling back to the one before")
        else:
            return folder, messages
    if messages:
        raise UserError(f"all {len(messages)} checkpoints in {root} are damaged; delete that folder to start again")
    return None, []


def mark_best(root: Path, folder: Path, metric: str, score: float) -> None:
    """Records ``folder`` (a checkpoint in ``root``) as the best one so far by ``metric``."""
    _write_json(root / f"{_BEST}.new", {"folder": folder.name, "metric": metric, "score": score})
    _flush(root / f"{_BEST}.new")
    os.replace(root / f"{_BEST}.new", root / _BEST)


def best_checkpoint(root: Path) -> Best | None:
    """The checkpoint that ``mark_best`` recorded last, or None. Raises UserError if the record cannot be read."""
    file = root / _BEST
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text())
        folder = root / record["folder"]
        best = Best(folder, _step(folder), record["metric"], float(record["score"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete it to go on without a best checkpoint") from None
    if not folder.is_dir():
        raise UserError(f"{file} names {record['folder']}, which is not there; delete that file to go on")
    return best


def prune(root: Path, keep_last: int, keep: Collection[Path] = ()) -> list[Path]:
    """Deletes all but the ``keep_last`` most recently saved checkpoints, those in ``keep`` and the best one.

    Returns the deleted folders. Goes by the time of saving, not by step: after a fall-back, a damaged checkpoint of a
    higher step is older than the good one just saved. Raises UserError if ``keep_last`` is less than 1.
    """
    if keep_last < 1:
        raise UserError(f"keep_last: {keep_last} keeps no checkpoint; it has to be at least 1")
    best = best_checkpoint(root)
    kept = {folder.resolve() for folder in keep} | ({best.folder.resolve()} if best else set())
    by_age = sorted(_folders(root), key=lambda folder: (_saved(folder), _step(folder)))
    deleted = [folder for folder in by_age[:-keep_last] if folder.resolve() not in kept]
    for folder in deleted:
        _remove(folder)
    return deleted


# Files


def _folders(root: Path) -> list[Path]:
    return [folder for folder in root.glob("step=*") if _FOLDER.fullmatch(folder.name) and folder.is_dir()]


def _temporary(root: Path) -> list[Path]:
    return [folder for folder in root.glob(".*") if folder.name.startswith(_TEMPORARY)]


def _step(folder: Path) -> int:
    found = _FOLDER.fullmatch(folder.name)
    if found is None:
        raise ValueError(f"'{folder.name}' is not the name of a checkpoint")
    return int(found.group(1))


def _saved(folder: Path) -> float:
    """Seconds since the epoch; a checkpoint without a readable manifest counts as the oldest."""
    try:
        return float(_manifest(folder)["saved"])
    except CorruptCheckpointError:
        return 0.0


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such checkpoint")
    file = folder / _MANIFEST
    try:
        manifest = json.loads(file.read_text())
        step, _, files = int(manifest["step"]), float(manifest["saved"]), dict(manifest["files"])
        complete = _STATE in files and all({"bytes", "sha256"} <= set(entry) for entry in files.values())
    except FileNotFoundError:
        raise CorruptCheckpointError(folder, f"{_MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptCheckpointError(folder, f"{_MANIFEST} cannot be read") from None
    if not complete or (_FOLDER.fullmatch(folder.name) and step != _step(folder)):
        raise CorruptCheckpointError(folder, f"{_MANIFEST} does not belong to it")
    return manifest


def _verify(folder: Path, only: str | None = None) -> dict[str, Any]:
    """Compares the files (or ``only`` that one) with the manifest, which is returned."""
    manifest = _manifest(folder)
    for name, entry in manifest["files"].items():
        if only not in (None, name):
            continue
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpointError(folder, f"{name} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise CorruptCheckpointError(folder, f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
        if _sha256(file) != entry["sha256"]:
            raise CorruptCheckpointError(folder, f"{name} does not have the checksum it was written with")
    return manifest


def _check_state(value: Any, key: str) -> None:
    if type(value) in (dict, OrderedDict):
        for name, item in value.items():
            _check_state(name, f"{key} (a key)")
            _check_state(item, f"{key}.{name}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_state(item, f"{key}.{index}")
    elif value is not None and type(value) not in (bool, int, float, str, bytes) and not isinstance(value, Tensor):
        raise TypeError(f"{key} is a {type(value).__name__}, which a checkpoint could not be loaded with")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write_json(file: Path, record: Mapping[str, object]) -> None:
    file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Deletes a checkpoint so that no half of it is ever taken for one."""
    deleting = folder.with_name(f"{_TEMPORARY[1]}{folder.name}")
    shutil.rmtree(deleting, ignore_errors=True)  # what a crash left
    if folder.exists():
        folder.rename(deleting)
        shutil.rmtree(deleting)
