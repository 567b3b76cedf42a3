"""``changes.json`` of a run folder: the settings in which its config differs from that of the base experiment.

    {"base": "caption_base", "changes": [{"key": "train.steps", "base": "1344", "here": "500"}, ...]}

The file is for readers of the report.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmlm.record.folder import CHANGES
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded


@dataclass(frozen=True)
class Change:
    """One setting that differs."""

    key: str
    """``train.steps``."""
    base: str | None
    """Its value in the base experiment as text; None if there is no such key."""
    here: str | None
    """Its value in the run, likewise."""


@dataclass(frozen=True)
class Changes:
    """All settings that differ, sorted by key."""

    base: str
    """The name of the base experiment."""
    changes: Sequence[Change]


def record_changes(folder: Path, changes: Changes) -> None:
    """Writes ``changes.json``, unless it says the same already. One that is damaged is written anew."""
    try:
        known = read_changes(folder)
    except DamagedFileError:
        known = None
    if known != changes:
        write_recorded(folder / CHANGES, json.dumps(asdict(changes), ensure_ascii=False, indent=1) + "\n")


def read_changes(folder: Path) -> Changes | None:
    """What ``changes.json`` says; None if there is no such file. Raises DamagedFileError."""
    file = folder / CHANGES
    if not file.is_file():
        return None
    try:
        content = json.loads(read_recorded(file))
        changes = [Change(str(one["key"]), _text(one["base"]), _text(one["here"])) for one in content["changes"]]
        return Changes(str(content["base"]), changes)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DamagedFileError(file, "it holds no list of changes") from None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
