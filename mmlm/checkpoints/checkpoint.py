"""Checkpoints: written as a whole or not at all, verified when they are read.

    checkpoints/
      step=000500/
        model.safetensors   one file for each named group of weights (``model``, ``ema``)
        state.pt            everything else a resumed run needs: optimizer, schedule, random states, data position
        sharded/model/      the sharded tensors of a group of weights or of the state (``sharded/state/``), under FSDP2
        manifest.json       step, time, and size and SHA-256 of the files above; written last
      best.json             the folder of the best checkpoint, and its score

A checkpoint is written into a temporary folder, flushed to disk and renamed, so that a crash leaves the older
checkpoints as they were. safetensors and ``torch.load`` load a file with a flipped bit without a word; the manifest's
checksums find it. Rank 0 writes everything except the sharded tensors, of which each rank writes its own shards.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch raises on a file that would run code; nothing is unpickled here
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmlm.checkpoints.files import (
    SHARDED,
    STATE,
    SUFFIX,
    CorruptCheckpointError,
    abandon,
    begin,
    checksum,
    explained,
    finish,
    flush,
    folders,
    read_manifest,
    remove,
    saved_at,
    saving_folder,
    step_of,
    verify,
    write_json,
)
from mmlm.checkpoints.nested import check_storable, map_leaves
from mmlm.checkpoints.sharded import NO_LAYOUT, Separated, lay_out, read_sharded, separate, write_sharded
from mmlm.checkpoints.weights import Weights, read_weights, save_weights
from mmlm.core.distributed import agreed
from mmlm.core.errors import UserError
from mmlm.core.wording import first_line

_BEST = "best.json"
_REASON = 120
"""Characters of a library's own message that our message repeats."""
_SHARDED_STATE = "state"
"""Folder below ``sharded/`` for the state's sharded tensors; no group of weights may have this name."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, on the CPU (tensors that were loaded in a sharded layout: on the layout's device)."""

    step: int
    """Optimizer steps taken."""
    weights: Mapping[str, Weights]
    """Groups of weights by name (``model``, ``ema``). Names of a tied weight share one tensor."""
    state: Mapping[str, object]
    """Everything else, as it was given to ``save_checkpoint``."""


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run."""

    folder: Path
    step: int
    metric: str
    score: float


def save_checkpoint(
    root: Path,
    step: int,
    weights: Mapping[str, Weights],
    state: Mapping[str, object],
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Writes ``root/step=<step>`` atomically and returns that folder. An older checkpoint of the same step is replaced.

    Each group of ``weights`` becomes a safetensors file. A tensor with two names (tied weights) is stored once, with
    the second name on record; other tensors that share memory are stored as copies. ``state`` may hold tensors,
    numbers, strings, bytes, None and lists, tuples, dicts of them (what ``torch.load(weights_only=True)`` reads);
    anything else is a TypeError, so that no run ends with a checkpoint that cannot be read.

    If any tensor is a DTensor, every rank of ``group`` (default: all ranks) has to call this with the same names. Each
    rank writes its shards, the group's first rank writes all else, and all ranks raise if one fails. Raises UserError
    if the disk is full or fails; the unfinished folder is removed and older checkpoints stay as they are.
    """
    check_storable(dict(state), "state")
    if _SHARDED_STATE in weights:
        raise ValueError(f"'{_SHARDED_STATE}' is no name for a group of weights")
    parts = separate(weights, state)
    if parts.is_sharded and group is None:
        group = dist.group.WORLD
    elif not parts.is_sharded:
        group = None  # this process writes alone, and waits for no other
    first = group is None or dist.get_rank(group) == 0
    saving = saving_folder(root, step)
    aliases: dict[str, dict[str, str]] = {}
    # Three stages, each of which ends alike on all ranks: no rank writes shards into a folder that the first rank could
    # not make, and the manifest, which makes the checkpoint valid, comes after every rank's shards.
    try:
        with agreed(group), explained(root, step):
            if first:
                begin(root, step)
                for name in _sharded(parts):
                    (saving / SHARDED / name).mkdir(parents=True)
        for name, tensors in _sharded(parts).items():
            with agreed(group), explained(root, step):
                assert group is not None, "there are sharded tensors, so there is a group"
                aliases[name] = write_sharded(saving / SHARDED / name, tensors, group)
        with agreed(group), explained(root, step):
            if first:
                _write_plain(saving, parts)
                finish(saving, step, {name: ties for name, ties in aliases.items() if ties})
    except Exception as error:
        # A full disk: the half-written folder would take the space that the next attempt needs. After any other error
        # the folder stays, to be looked at, until the next checkpoint is begun.
        if first and isinstance(error, UserError):
            abandon(saving)
        raise
    return root / f"step={step:06d}"


def load_checkpoint(folder: Path, layout: Weights = NO_LAYOUT, verified: bool = False) -> Checkpoint:
    """Verifies a checkpoint and reads all of it, whether it was saved sharded or not.

    Args:
        folder: the checkpoint.
        layout: the ``state_dict()`` of a sharded module. Every tensor that belongs to one of its parameters (weight,
            average, optimizer state under the parameter's name) is returned sharded like the parameter, however many
            ranks saved it. All other tensors, and without ``layout`` all tensors, are returned in full. Ranks read
            independently of each other.
        verified: skips the checksums. For ranks that know that another rank has just compared them.

    Raises CorruptCheckpointError for a damaged checkpoint, and UserError if there is no such folder.
    """
    manifest = read_manifest(folder) if verified else verify(folder)
    groups = [file.removesuffix(SUFFIX) for file in manifest.files if "/" not in file and file != STATE]
    weights = {name: _read_group(folder, name, manifest.aliases.get(name, {}), layout) for name in groups}
    state = _read_state(folder)
    # The state.pt of a sharded run has None in the place of each sharded tensor, which is filled in by its path.
    parts: Mapping[str, Tensor] = {}
    if (folder / SHARDED / _SHARDED_STATE).is_dir():
        aliases = manifest.aliases.get(_SHARDED_STATE, {})
        parts = read_sharded(folder / SHARDED / _SHARDED_STATE, aliases, layout)

    def complete(path: str, leaf: Any) -> Any:
        return parts[path] if path in parts else lay_out(path, leaf, layout)

    return Checkpoint(manifest.step, weights, map_leaves(state, complete))


def _read_state(folder: Path) -> Any:
    """The content of state.pt, read without running code from it. Raises CorruptCheckpointError."""
    try:
        return torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError, TypeError) as error:
        reason = first_line(error)[:_REASON]
        raise CorruptCheckpointError(
            folder, f"{STATE} holds more than plain values, or is no such file, and is not read ({reason})"
        ) from None


def load_weights(folder: Path, group: str = "model") -> dict[str, Tensor]:
    """Verifies and reads one group of weights only, on the CPU and in full, whether it was saved sharded or not.

    Raises CorruptCheckpointError if its files are damaged, and UserError if there is no such folder or group.
    """
    files = read_manifest(folder).files
    if f"{group}{SUFFIX}" not in files:
        groups = ", ".join(file.removesuffix(SUFFIX) for file in files if "/" not in file and file != STATE)
        raise UserError(f"checkpoint {folder} has no '{group}' weights; there are: {groups}")
    return _read_group(folder, group, verify(folder, group).aliases.get(group, {}), NO_LAYOUT)


def latest_checkpoint(root: Path, at_most: int | None = None) -> tuple[Path | None, list[str]]:
    """The intact checkpoint of the highest step, up to ``at_most``, and a message for each damaged one passed over.

    The folder is None if there are no checkpoints. Raises UserError if there are checkpoints and all are damaged:
    starting again from step 0 has to be the user's decision.
    """
    messages: list[str] = []
    # Of one step, the folder that replaces comes before the one that is replaced (`.replaced`, left by a crash).
    found = [folder for folder in folders(root) if at_most is None or step_of(folder) <= at_most]
    for folder in sorted(found, key=lambda folder: (step_of(folder), folder.suffix == ""), reverse=True):
        try:
            verify(folder)
        except CorruptCheckpointError as error:
            messages.append(f"{error}; falling back to the one before")
        else:
            return folder, messages
    if messages:
        raise UserError(f"all {len(messages)} checkpoints in {root} are damaged; delete that folder to start again")
    return None, []


def mark_best(root: Path, folder: Path, metric: str, score: float) -> None:
    """Records ``folder`` (a checkpoint in ``root``) as the best so far by ``metric``, with its ``score``."""
    # Flushed before it is renamed: after a power cut, the name could otherwise stand for an empty file.
    record: dict[str, object] = {"folder": folder.name, "metric": metric, "score": score}
    write_json(root / f"{_BEST}.new", record | {"checksum": checksum(record)})
    flush(root / f"{_BEST}.new")
    os.replace(root / f"{_BEST}.new", root / _BEST)


def best_checkpoint(root: Path) -> Best | None:
    """The checkpoint that ``mark_best`` recorded last; None without one. Raises UserError for a damaged record."""
    file = root / _BEST
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_bytes())
        if record.pop("checksum", None) not in (None, checksum(record)):
            raise ValueError("it does not have the checksum it was written with")
        folder = root / record["folder"]
        best = Best(folder, step_of(folder), record["metric"], float(record["score"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete it to go on without a best checkpoint") from None
    if not folder.is_dir():
        raise UserError(f"{file} names {record['folder']}, which is not there; delete that file to go on")
    return best


def prune(root: Path, keep_last: int, keep: Collection[Path] = ()) -> list[Path]:
    """Deletes checkpoints except the ``keep_last`` most recently saved ones, those in ``keep`` and the best one.

    Returns the deleted folders. Age counts by the time of saving, not by step: after a fall-back to an earlier
    checkpoint, the damaged one of a higher step is older than the one just saved. Raises UserError if ``keep_last`` is
    less than 1.
    """
    if keep_last < 1:
        raise UserError(f"keep_last: {keep_last} keeps no checkpoint; it has to be at least 1")
    best = best_checkpoint(root)
    kept = {folder.resolve() for folder in keep} | ({best.folder.resolve()} if best else set())
    by_age = sorted(folders(root), key=lambda folder: (saved_at(folder), step_of(folder)))
    deleted = [folder for folder in by_age[:-keep_last] if folder.resolve() not in kept]
    for folder in deleted:
        remove(folder)
    return deleted


def remove_after(root: Path, step: int) -> list[Path]:
    """Deletes the checkpoints of steps above ``step``, except the best one; returns the deleted folders.

    Called when a run has gone back to ``step`` after a loss spike: resumed from a later checkpoint, the run would meet
    the spike again.
    """
    best = best_checkpoint(root)
    later = [folder for folder in folders(root) if step_of(folder) > step and not (best and folder == best.folder)]
    for folder in later:
        remove(folder)
    return later


def _sharded(parts: Separated) -> dict[str, Mapping[str, Any]]:
    """Folder below ``sharded/`` -> the sharded tensors written there. Every rank has the same order of folders.

    The order matters because all ranks write one folder after the other together.
    """
    return dict(parts.sharded_weights) | ({_SHARDED_STATE: parts.sharded_state} if parts.sharded_state else {})


def _write_plain(saving: Path, parts: Separated) -> None:
    """Writes everything except the sharded tensors."""
    for name, tensors in parts.weights.items():
        save_weights(tensors, saving / f"{name}{SUFFIX}")
    with (saving / STATE).open("wb") as opened:  # given a path, torch reports a full disk as "unexpected pos"
        torch.save(dict(parts.state), opened)


def _read_group(folder: Path, name: str, aliases: Mapping[str, str], layout: Weights) -> dict[str, Tensor]:
    """Reads one group of weights. A tied weight is sharded once, so that its names share one tensor again."""
    laid_out: dict[int, Tensor] = {}
    weights = {}
    for key, tensor in read_weights(folder / f"{name}{SUFFIX}").items():
        weights[key] = laid_out.setdefault(id(tensor), lay_out(key, tensor, layout))
    if (folder / SHARDED / name).is_dir():
        weights |= read_sharded(folder / SHARDED / name, aliases, layout)
    return weights
