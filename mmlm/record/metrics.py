"""Metrics of a run: rows of ``(name, value)`` in ``metrics.jsonl``, the record, which reports and copies follow."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from mmlm.core.errors import UserError
from mmlm.core.wording import utf8
from mmlm.record.folder import METRICS, unwritten, write_whole
from mmlm.record.logger import Copies
from mmlm.record.manifest import Growing, Prefix, announce_prefixes, read_recorded, text_of

_RESERVED = ("step", "examples", "seconds")
"""Names in a row that no metric may have."""
_ROWS = 200
"""Rows after which the file is put on record in the manifest; it is at the end of a run, and of a part of one, too."""


class Log(Protocol):
    """A log of metrics, as training uses it."""

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Records one row: optimizer steps, examples seen since step 0, seconds of training, and values by name."""
        ...

    def resume_from(self, step: int | None) -> int:
        """Deletes the rows after ``step``, or all rows if None; returns how many."""
        ...


class NoLog:
    """The log of ranks other than 0, which records nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        """See ``Log``."""

    def resume_from(self, step: int | None) -> int:
        """See ``Log``."""
        return 0


class MetricLog:
    """The log of one run, in ``metrics.jsonl`` and its copies. Used on rank 0 only, as a context manager.

    A row of ``metrics.jsonl`` is one JSON object: ``step`` (optimizer steps), ``examples`` (seen since step 0),
    ``seconds`` (of training), and the values. JSON has no NaN, so non-finite values are written as the strings
    ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which ``float()`` and ``read_metrics`` read.
    """

    def __init__(self, run_folder: Path, copies: Copies | None = None) -> None:
        """``metrics.jsonl`` is opened by the first row, and ``copies`` are begun by ``resume_from``."""
        run_folder.mkdir(parents=True, exist_ok=True)
        self.path = run_folder / METRICS
        self._file: TextIO | None = None
        self._written = Growing()
        self._unannounced = 0
        self._copies = copies

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def resume_from(self, step: int | None) -> int:
        """Deletes the rows after ``step``, or all rows if None (the run starts anew); returns how many.

        A run that was killed has rows of steps after its last checkpoint, and maybe half a row at the end. The resumed
        run makes these steps, and their rows, again.
        """
        rows = read_metrics(self.path) if self.path.exists() else []
        kept = [row for row in rows if step is not None and row["step"] <= step]
        self._close_file()
        text = "".join(_line(row) for row in kept)
        before = [Prefix.of(self.path.read_bytes())] if self.path.exists() else []
        announce_prefixes(self.path.parent, METRICS, Prefix.of(utf8(text)), *before)
        write_whole(self.path, text)
        if self._copies is not None:
            self._copies.begin(kept)
        return len(rows) - len(kept)

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Appends one row and hands it to the operating system at once, so that a killed process loses none.

        Raises UserError if the disk is full or cannot be written to.
        """
        if clash := [name for name in values if name in _RESERVED]:
            raise ValueError(f"a metric cannot be called '{clash[0]}'")
        row = _plain({"step": step, "examples": examples, "seconds": seconds, **values})
        try:
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
                self._written = Growing(self.path.read_bytes())
            line = _line(row)
            self._file.write(line)
            self._file.flush()
            self._written.add(utf8(line))
            self._unannounced += 1
            if self._unannounced >= _ROWS:
                self._announce()
        except OSError as error:
            raise unwritten(self.path, error) from error
        if self._copies is not None:
            self._copies.log(row)

    def close(self, failed: bool = False) -> None:
        """Closes the file and ends the copies; ``failed`` marks them as those of a run that was cut off."""
        self._close_file()
        if self._copies is not None:
            self._copies.close(failed)

    def _close_file(self) -> None:
        if self._file is not None:
            # A full disk has been told of, or will be by whoever writes next: rows that are not on record do no harm.
            with suppress(OSError):
                self._announce()
            with suppress(OSError):  # of a row that could not be written, which has been told
                self._file.close()
            self._file = None

    def _announce(self) -> None:
        """Puts what the file holds by now on record, once it is on the disk."""
        assert self._file is not None, "rows are put on record while they are written"
        os.fsync(self._file.fileno())
        announce_prefixes(self.path.parent, METRICS, self._written.prefix)
        self._unannounced = 0


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a ``metrics.jsonl``, but for a last row that is cut off. Any other bad row is a UserError.

    Raises DamagedFileError if the file does not begin with what is on record of it.
    """
    rows = []
    lines = text_of(path, read_recorded(path)).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                rows.append({name: number_of(value) for name, value in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError):
            # A process that was killed while it wrote leaves half of the last row, and of no other.
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a row of metrics; delete that line") from None
    return rows


def _plain(row: Mapping[str, float]) -> dict[str, float]:
    """int stays int; 0-dimensional tensors and numpy numbers become floats."""
    return {name: value if type(value) in (int, float) else float(value) for name, value in row.items()}


def spelt(values: Mapping[str, float]) -> dict[str, float | str]:
    """Values as JSON can hold them: those that are not finite as strings, which ``number_of`` reads."""
    return {name: value if math.isfinite(value) else _spell(value) for name, value in values.items()}


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(spelt(row), allow_nan=False) + "\n"


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def number_of(value: object) -> float:
    """A value as JSON has it: an int, a float, or a string such as ``"NaN"``. Raises TypeError or ValueError."""
    if isinstance(value, str):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
