"""The cells of a benchmark: models that differ from a reference in one slot. ``configs/`` has the options of a slot."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean
from mmlm.experiment.config import CONFIG_DIR

CANNOT_RUN = (UserError, torch.OutOfMemoryError, OSError)
"""Errors of a cell that is left out of the table: it is refused, too large, or needs a file to be downloaded."""


@dataclass(frozen=True)
class LeftOut:
    """A cell that was not run, and why."""

    option: str
    reason: str


def left_out(option: str, error: Exception) -> LeftOut:
    """The entry of a cell that raised ``error``, one of ``CANNOT_RUN``."""
    if isinstance(error, UserError):
        return LeftOut(option, str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return LeftOut(option, "does not fit the device's memory")
    # An OSError is what transformers and huggingface_hub raise for a file that is not here.
    return LeftOut(option, f"needs a file that is not here ({' '.join(str(error).split())})")


def check_choices(slots: Sequence[str], options: Sequence[str] | None, known_slots: Sequence[str]) -> None:
    """UserError for a slot that is none of ``known_slots``, or an option that none of the chosen slots has."""
    for slot in slots:
        if slot not in known_slots:
            raise UserError(f"slots: '{slot}' is no slot{did_you_mean(slot, known_slots)}")
    known = [option for slot in slots for option in options_of(slot)]
    for option in options or ():
        if option not in known:
            raise UserError(f"options: '{option}' is no option of {', '.join(slots)}{did_you_mean(option, known)}")


def check_at_least(least: int, values: Mapping[str, int | None]) -> None:
    """UserError for the first of ``values`` (by key) below ``least``. A value of None is not checked."""
    for key, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{key}: {value} must be at least {least}")


def check_out(out: str | None) -> None:
    """UserError unless ``out`` is a place for a file, or None."""
    if out is not None and (Path(out).is_dir() or not Path(out).parent.is_dir()):
        raise UserError(f"out: {out} must be a file in a folder that is there")


def options_of(slot: str) -> list[str]:
    """The options of a slot: the names of its files in ``configs/<slot>/``."""
    return sorted(file.stem for file in (CONFIG_DIR / slot).glob("*.yaml"))


def each_cell(slots: Sequence[str], options: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Every chosen (slot, option), slot by slot. Before each one, a line on stderr says which comes now."""
    cells = [(slot, option) for slot in slots for option in options_of(slot) if options is None or option in options]
    for number, (slot, option) in enumerate(cells, start=1):
        print(f"{number} of {len(cells)}: {slot}={option}", file=sys.stderr, flush=True)
        yield slot, option


def reasons(rows: Iterable[object]) -> Iterator[str]:
    """The lines below a table that say why some of ``rows`` were left out; no lines if none were."""
    missing = [row for row in rows if isinstance(row, LeftOut)]
    if missing:
        yield from ("", "Left out:", "")
        yield from (f"- {row.option}: {row.reason}" for row in missing)


def publish(lines: Iterable[str], out: str | None) -> None:
    """Prints the text, and writes it to the file ``out`` if there is one."""
    text = "\n".join(lines)
    print(text)
    if out is not None:
        Path(out).write_text(text + "\n", encoding="utf-8")
