"""``watched.jsonl``: scores of checkpoints that ``mmlm.evaluate watch=true`` took beside the training of a run.

    {"step": 200, "checkpoint": "...", "by": "...", "precision": "bf16", "values": {"val/image_to_text/R@1": 0.4}}

``metrics.jsonl`` belongs to the training, which cuts it when it goes back; so this is a file of its own, replaced as a
whole with each row. The manifest of the folder has its checksum.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.record.manifest import read_recorded, text_of, write_recorded
from mmlm.record.metrics import number_of, spelt


@dataclass(frozen=True)
class WatchedRow:
    """The scores of one checkpoint."""

    step: int
    """Optimizer steps of its weights."""
    checkpoint: str
    """What its weights are known by: of one step, a training that went back saves others."""
    by: str
    """What was asked for (splits, evaluators, precision), known by a digest."""
    precision: str
    """The precision that the scores were computed in."""
    values: Mapping[str, float]
    """By ``split/evaluator/name``, as in ``metrics.jsonl``."""


def read_watched(file: Path) -> list[WatchedRow]:
    """The rows; none without the file. Raises DamagedFileError, and UserError for what is no row."""
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(text_of(file, read_recorded(file)).splitlines(), start=1):
        try:
            row = json.loads(line)
            values = {str(name): number_of(value) for name, value in row["values"].items()}
            checkpoint, by, precision = (str(row[name]) for name in ("checkpoint", "by", "precision"))
            rows.append(WatchedRow(int(row["step"]), checkpoint, by, precision, values))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{file}, line {number}: not a row of watched scores; delete that line") from None
    return rows


def add_watched(file: Path, row: WatchedRow) -> None:
    """Adds a row, in place of those of its step that are of other weights or were asked for alike.

    Raises UserError if the disk is full or cannot be written to, and as ``read_watched`` does.
    """
    kept = [
        old
        for old in read_watched(file)
        if old.step != row.step or (old.checkpoint == row.checkpoint and old.by != row.by)
    ]
    rows = sorted([*kept, row], key=lambda one: one.step)
    lines = [json.dumps(asdict(one) | {"values": spelt(one.values)}, ensure_ascii=False) for one in rows]
    write_recorded(file, "".join(f"{line}\n" for line in lines))
