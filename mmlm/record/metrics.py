"""One stream of ``(name, value)``: to ``metrics.jsonl``, to wandb, and to the console.

The JSONL file is the record (reports read it); wandb is a copy that may fail; the console is for whoever watches.
"""

import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from mmlm.core.errors import UserError
from mmlm.record.folder import METRICS, WANDB_ID, write_whole

if TYPE_CHECKING:
    from wandb import Run

_RESERVED = ("step", "examples", "seconds")
_WANDB_SECONDS = 15.0
_UPLOAD_SECONDS = 60.0


class WandbMode(StrEnum):
    """Where wandb gets its copy of the metrics."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass
class MetricsSettings:
    """Where metrics go besides ``metrics.jsonl``."""

    wandb: WandbMode = WandbMode.disabled
    """disabled; offline (kept in the run folder, uploaded later with `wandb sync`); or online."""
    project: str = "mmlm"
    """wandb project."""
    entity: str | None = None
    """wandb user or team; null is the account's default."""
    tags: list[str] = field(default_factory=list)
    """wandb tags."""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class Log(Protocol):
    """What training needs of a log of metrics."""

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Takes one row: optimizer steps, examples seen in all, seconds of training, and the values by name."""
        ...

    def resume_from(self, step: int | None) -> int:
        """Drops the rows after ``step``, or all of them if None; returns how many."""
        ...


class NoLog:
    """The log of ranks other than 0: it takes nothing down."""

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
    """The metrics of one run. Made by one process (rank 0), closed at the end (``with`` does both).

    A row of ``metrics.jsonl`` is one JSON object: ``step`` (optimizer steps), ``examples`` (seen in all), ``seconds``
    (of training), and the values. JSON has no NaN: non-finite values are written as the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``, which ``float()`` reads and ``read_metrics`` turns back.

    No failure of wandb stops a run: the first one is warned about and wandb is left out from there on.
    """

    def __init__(
        self,
        run_folder: Path,
        settings: MetricsSettings,
        config: Mapping[str, Any],
        run_name: str,
        tell: Callable[[str], None] = _to_stderr,
    ) -> None:
        """``config`` is what wandb shows as the run's settings: plain values, and no secrets.

        ``tell`` receives the line about a failure of wandb (``Console.line``, where there is a console).
        """
        run_folder.mkdir(parents=True, exist_ok=True)
        self._tell = tell
        self.path = run_folder / METRICS
        self._file: TextIO | None = None
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
        """Drops the rows after ``step``, or all of them if None (the run starts anew). Returns how many.

        A run that was killed has rows beyond its last checkpoint, and maybe half a row; training makes them again.
        """
        rows = read_metrics(self.path) if self.path.exists() else []
        kept = [row for row in rows if step is not None and row["step"] <= step]
        self._close_file()
        write_whole(self.path, "".join(_line(row) for row in kept))
        return len(rows) - len(kept)

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Appends one row and hands it to the operating system at once."""
        if clash := [name for name in values if name in _RESERVED]:
            raise ValueError(f"a metric cannot be called '{clash[0]}'")
        row = {"step": step, "examples": examples, "seconds": seconds, **values}
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(_line(row))
        self._file.flush()
        self._to_wandb(lambda run: run.log(row))

    def close(self, failed: bool = False) -> None:
        """Closes the file and ends the wandb run; ``failed`` marks it as failed there."""
        self._close_file()
        self._to_wandb(lambda run: run.finish(exit_code=int(failed)))
        self._wandb = None

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _to_wandb(self, action: Callable[["Run"], None]) -> None:
        if self._wandb is None:
            return
        try:
            action(self._wandb)
        except Exception as error:  # whatever it is: a logger does not end a run
            self._wandb = None
            self._tell(_left_out(error))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.jsonl``. A last row that was cut off is left out; any other bad row is a UserError."""
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            rows.append({name: _number(value) for name, value in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError):
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
    if isinstance(value, str):
        return float(value)
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is not a number")
    return value


# wandb


def _start_wandb(run_folder: Path, settings: MetricsSettings, config: Mapping[str, Any], run_name: str) -> "Run":
    """A wandb run that keeps to the run folder, prints nothing and gives up in bounded time."""
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
    # Not wandb's own step, which refuses to go back when a run resumes from a checkpoint.
    run.define_metric("*", step_metric="step")
    return run


def _wandb_id(run_folder: Path) -> str:
    """The id of this run folder at wandb, so that a resumed run continues its curves."""
    file = run_folder / WANDB_ID
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    return file.read_text().strip()


def _left_out(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"wandb is left out from here on ({type(error).__name__}: {first}); {METRICS} has everything"
