"""Metrics of a run: rows of ``(name, value)`` in ``metrics.jsonl``, and a copy at wandb.

The JSONL file is the record, which reports read. The copy at wandb may fail without harm.
"""

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from mmlm.core.errors import UserError
from mmlm.core.output import to_stderr
from mmlm.core.wording import utf8
from mmlm.record.folder import METRICS, WANDB_ID, unwritten, write_whole
from mmlm.record.manifest import Growing, Prefix, announce_prefixes, read_recorded, text_of, write_recorded

if TYPE_CHECKING:
    from wandb import Run

_RESERVED = ("step", "examples", "seconds")
"""Names in a row that no metric may have."""
_WANDB_SECONDS = 15.0
"""How long wandb may take to start, once to log in and once to begin the run."""
_ROWS = 200
"""Rows after which the file is put on record in the manifest; it is at the end of a run, and of a part of one, too."""
_UPLOAD_SECONDS = 60.0
"""How long wandb may take, at the end of a run, to upload what is left."""


class WandbMode(StrEnum):
    """Whether and how wandb gets a copy of the metrics."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass
class MetricsSettings:
    """Settings of wandb; ``metrics.jsonl`` is always written."""

    wandb: WandbMode = WandbMode.disabled
    """disabled; offline (kept in the run folder, uploaded later with `wandb sync`); or online."""
    project: str = "mmlm"
    """wandb project."""
    entity: str | None = None
    """wandb user or team; null is the account's default."""
    tags: list[str] = field(default_factory=list)
    """wandb tags."""


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
    """The log of one run, in ``metrics.jsonl`` and at wandb. Used on rank 0 only, as a context manager.

    A row of ``metrics.jsonl`` is one JSON object: ``step`` (optimizer steps), ``examples`` (seen since step 0),
    ``seconds`` (of training), and the values. JSON has no NaN, so non-finite values are written as the strings
    ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which ``float()`` and ``read_metrics`` read.

    No failure of wandb ends a run: after the first one, which is told, wandb is not used any more.
    """

    def __init__(
        self,
        run_folder: Path,
        settings: MetricsSettings,
        config: Mapping[str, Any],
        run_name: str,
        tell: Callable[[str], None] = to_stderr,
    ) -> None:
        """Starts the copy at wandb if ``settings`` ask for it; ``metrics.jsonl`` is opened by the first row.

        ``config`` is shown by wandb as the run's settings: plain values without secrets. ``tell`` receives the line
        about a failure of wandb.
        """
        run_folder.mkdir(parents=True, exist_ok=True)
        self._tell = tell
        self.path = run_folder / METRICS
        self._file: TextIO | None = None
        self._written = Growing()
        self._unannounced = 0
        self._wandb: Run | None = None
        if settings.wandb != WandbMode.disabled:
            try:
                self._wandb = _start_wandb(run_folder, settings, config, run_name)
            except Exception as error:  # no network, no account, a changed library: none of it ends a run
                tell(_left_out(error))

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
        return len(rows) - len(kept)

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Appends one row and hands it to the operating system at once, so that a killed process loses none.

        Raises UserError if the disk is full or cannot be written to.
        """
        if clash := [name for name in values if name in _RESERVED]:
            raise ValueError(f"a metric cannot be called '{clash[0]}'")
        row = {"step": step, "examples": examples, "seconds": seconds, **values}
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
        # Its own count of rows would begin anew in a resumed run, and the parts of an offline run overwrite each other.
        self._to_wandb(lambda run: run.log(row, step=step))

    def close(self, failed: bool = False) -> None:
        """Closes the file and ends the run at wandb; ``failed`` marks it as failed there."""
        self._close_file()
        self._to_wandb(lambda run: run.finish(exit_code=int(failed)))
        self._wandb = None

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

    def _to_wandb(self, action: Callable[["Run"], None]) -> None:
        if self._wandb is None:
            return
        try:
            action(self._wandb)
        except Exception as error:  # whatever it is: a logger does not end a run
            self._wandb = None
            self._tell(_left_out(error))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a ``metrics.jsonl``, but for a last row that is cut off. Any other bad row is a UserError.

    Raises DamagedFileError if the file does not begin with what is on record of it.
    """
    rows = []
    lines = text_of(path, read_recorded(path)).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                rows.append({name: _number(value) for name, value in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError):
            # A process that was killed while it wrote leaves half of the last row, and of no other.
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a row of metrics; delete that line") from None
    return rows


def _line(row: Mapping[str, float]) -> str:
    # int stays int; 0-dimensional tensors and numpy numbers become floats.
    plain = {name: value if type(value) in (int, float) else float(value) for name, value in row.items()}
    spelt = {name: value if math.isfinite(value) else _spell(value) for name, value in plain.items()}
    return json.dumps(spelt, allow_nan=False) + "\n"


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: object) -> float:
    """A value of a row as JSON has it: an int, a float, or a string such as ``"NaN"``."""
    if isinstance(value, str):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value


# wandb


def _start_wandb(run_folder: Path, settings: MetricsSettings, config: Mapping[str, Any], run_name: str) -> "Run":
    """Starts a wandb run that writes below the run folder only, prints nothing and gives up in bounded time."""
    import wandb  # takes a second, and most runs do without

    limits = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        init_timeout=_WANDB_SECONDS,
        login_timeout=_WANDB_SECONDS,
        finish_timeout=_UPLOAD_SECONDS,
    )
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        tags=settings.tags,
        name=run_name,
        id=_wandb_id(run_folder),
        resume="allow" if settings.wandb == WandbMode.online else None,
        dir=run_folder,
        mode=settings.wandb.value,
        config=dict(config),
        settings=limits,
    )
    # Our own step as the axis: wandb's refuses to go back, which a run does that resumes from a checkpoint.
    run.define_metric("*", step_metric="step")
    return run


def _wandb_id(run_folder: Path) -> str:
    """The id of this run folder at wandb, made once and kept in a file, so that a resumed run continues its curves."""
    file = run_folder / WANDB_ID
    if not file.exists():
        write_recorded(file, secrets.token_hex(4))
    return text_of(file, read_recorded(file)).strip()


def _left_out(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"wandb is left out from here on ({type(error).__name__}: {first}); {METRICS} has everything"
