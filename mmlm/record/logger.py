"""Loggers: copies of a run's metrics, samples and report, for a service or a viewer.

``metrics.jsonl`` is the record; a copy follows it, and may fail without harm.
"""

import importlib.util
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from mmlm.core.errors import UserError
from mmlm.core.output import to_stderr
from mmlm.core.wording import first_line
from mmlm.record.folder import LOGGER_ID, METRICS
from mmlm.record.manifest import read_recorded, text_of, write_recorded

Row = Mapping[str, float]
"""A row of ``metrics.jsonl``: ``step``, ``examples``, ``seconds`` and the values by name."""


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger copies."""

    folder: Path
    name: str
    """Such as ``caption_base/1a2b3c4d/seed=0``."""
    config: Mapping[str, Any]
    """Its settings: plain values without secrets."""

    def identity(self) -> str:
        """Eight hexadecimal digits, made once and kept in the folder, so that a resumed run continues its curves."""
        file = self.folder / LOGGER_ID
        if not file.exists():
            write_recorded(file, secrets.token_hex(4))
        return text_of(file, read_recorded(file)).strip()


@dataclass(frozen=True)
class Sample:
    """An image and what is said of it."""

    image: Image.Image
    caption: str


class Logger(Protocol):
    """A copy of a run. Its constructor starts nothing and imports no library, but refuses one that is missing.

    What a method raises ends the copy, and not the run. Rank 0 alone calls them.
    """

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        """Makes the copy hold ``rows`` and nothing else: all that the run has made up to the step that it goes on from.

        Called before anything is logged, and again if the run goes back to an earlier step. So a step is never there
        twice, nor missing, whatever had been copied when a run was killed.
        """
        ...

    def log(self, row: Row) -> None:
        """Adds one row; its ``step`` is at least that of the row before."""
        ...

    def samples(self, step: int, split: str, samples: Sequence[Sample]) -> None:
        """Adds the sample images of a split, after the last evaluation."""
        ...

    def report(self, step: int, page: Path) -> None:
        """Adds the report of the run, one HTML file."""
        ...

    def close(self, failed: bool) -> None:
        """Ends the copy; ``failed`` says that the run was cut off."""
        ...


@dataclass
class Copies:
    """The loggers of one run, by name. One that fails is told of in one line, once, and left out from then on."""

    run: LoggedRun
    loggers: dict[str, Logger]
    tell: Callable[[str], None] = field(default=to_stderr)

    def begin(self, rows: Sequence[Row]) -> None:
        """See ``Logger``."""
        self._each(lambda logger: logger.begin(self.run, rows))

    def log(self, row: Row) -> None:
        """See ``Logger``."""
        self._each(lambda logger: logger.log(row))

    def samples(self, step: int, split: str, samples: Sequence[Sample]) -> None:
        """See ``Logger``."""
        self._each(lambda logger: logger.samples(step, split, samples))

    def report(self, step: int, page: Path) -> None:
        """See ``Logger``."""
        self._each(lambda logger: logger.report(step, page))

    def close(self, failed: bool) -> None:
        """See ``Logger``."""
        self._each(lambda logger: logger.close(failed))
        self.loggers = {}

    def _each(self, action: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                action(logger)
            except Exception as error:  # no network, no account, a full disk, a changed library: none of it ends a run
                del self.loggers[name]
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                what = kind + first_line(error)
                self.tell(f"{name} is left out from here on ({what}); {METRICS} has everything")


def check_installed(package: str, install: str) -> None:
    """Raises UserError if the package of a logger is not installed; ``install`` is what to give to ``pip install``."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a folder of that name, such as those that loggers write, is no package
        raise UserError(f"logger: {package} is not installed; pip install {install}")
