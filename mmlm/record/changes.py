"""``changes.json`` of a run folder: the settings in which its config differs from that of the base experiment.

    {"base": "caption_base", "changes": [{"key": "train.steps", "base": "1344", "here": "500"}, ...]}

The file is for readers of the report. Whoever cannot understand it does without it.
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
    """Writes ``changes.json``, unless it says the same already."""
    if read_changes(folder) != changes:
        write_recorded(folder / CHANGES, json.dumps(asdict(changes), ensure_ascii=False, indent=1) + "\n")


def read_changes(folder: Path) -> Changes | None:
    """What ``changes.json`` says; None if there is no such file, or if it is damaged."""
    try:
        content = json.loads(read_recorded(folder / CHANGES))
        changes = [Change(str(one["key"]), _text(one["base"]), _text(one["here"])) for one in content["changes"]]
        return Changes(str(content["base"]), changes)
    except (DamagedFileError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
