"""Says whether the files of a run, or of an exported model, are as they were written."""

from collections.abc import Iterator
from pathlib import Path

from mmlm.checkpoints.checkpoint import best_checkpoint
from mmlm.checkpoints.files import folders, verify
from mmlm.cli.arguments import VerifyArguments
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import USER_ERROR, UserError
from mmlm.record.folder import (
    CHANGES,
    CHECKPOINTS,
    DATA,
    ENVIRONMENT,
    FIGURES,
    ITEMS,
    LOGGER_ID,
    MANIFEST,
    OVERLAP,
    REPORT,
    SAMPLES,
    SCORES,
)
from mmlm.record.manifest import DamagedFileError, accept, fault_of, read_manifest

_MAY_BE_GONE = (CHANGES, DATA, OVERLAP, ENVIRONMENT, FIGURES, SCORES, SAMPLES, ITEMS, REPORT, LOGGER_ID)
"""Files that a run does without, so that whoever has removed one has done no damage."""


def verify_run(arguments: VerifyArguments) -> int:
    """Prints a line for each file and checkpoint; returns the exit status. Raises UserError."""
    path = Path(arguments.run)
    folder = path if (path / MANIFEST).is_file() else chosen_run(arguments.run)
    for name in arguments.accept:
        _accept(folder, name)
    faults = 0
    for name, fault in [*_files(folder), *_checkpoints(folder / CHECKPOINTS)]:
        faults += fault is not None
        print(fault or f"{name}: as it was written")
    return USER_ERROR if faults else 0


def _accept(folder: Path, name: str) -> None:
    """Puts one file on record as it is. Raises UserError."""
    manifest = read_manifest(folder)
    known = [MANIFEST, *manifest.sums, *manifest.prefixes]
    # A folder that is older than the manifest has files that could be on record, and are not.
    direct = Path(name).name == name and (folder / name).is_file()
    if name not in known and not direct:
        raise UserError(f"accept: '{name}' is no file on record in {folder}; there are: {', '.join(known)}")
    try:
        accept(folder, name)
    except FileNotFoundError:
        raise UserError(f"accept: {folder / name} is not there; restore it from a copy") from None


def _files(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yields every file on record, and the line about what is wrong with it, or None."""
    manifest = read_manifest(folder)
    if manifest.damaged:
        lines = ", ".join(map(str, manifest.damaged))
        yield (
            MANIFEST,
            f"{folder / MANIFEST}: is damaged (line {lines}); files that only those lines name are read as they are; "
            f"drop them by accept=[{MANIFEST}]",
        )
    for name in [*manifest.sums, *manifest.prefixes]:
        if name in _MAY_BE_GONE and not (folder / name).exists():
            continue
        reason = fault_of(folder, name, manifest)
        yield name, None if reason is None else str(DamagedFileError(folder / name, reason))


def _checkpoints(root: Path) -> Iterator[tuple[str, str | None]]:
    """Yields every checkpoint, and the line about what is wrong with it, or None; last the record of the best one."""
    for folder in sorted(folders(root)):
        try:
            verify(folder)
        except UserError as error:
            yield folder.name, str(error)
        else:
            yield f"{root.name}/{folder.name}", None
    try:
        best = best_checkpoint(root)
    except UserError as error:
        yield "best.json", str(error)
    else:
        if best is not None:
            yield f"{root.name}/best.json", None
