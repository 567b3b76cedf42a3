"""What a study tells while it runs: a line for each run that begins or ends, and how far everything is."""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mmlm.core.output import LastingOutput
from mmlm.core.wording import cut
from mmlm.studies.grid import Run
from mmlm.studies.place import Place
from mmlm.studies.progress import Phase, state_of, summary

_PAUSE = 2.0
"""Seconds between two lines that tell how far a study is, on a terminal."""


def tell(line: str) -> None:
    """Prints a line. A study goes on when nobody reads it any more."""
    print(line, file=LastingOutput(), flush=True)


@dataclass
class Shown:
    """How far runs are, on the terminal: a line that is written anew, or else a line whenever a run has ended."""

    runs: Sequence[Run]
    place: Place
    at_once: int
    _since: float = 0.0
    _line: bool = False

    def tell(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        tell(line)

    def clear(self) -> None:
        """Takes away the line that is written anew."""
        if self._line:
            print("\r\x1b[2K", end="", file=LastingOutput(), flush=True)
            self._line = False

    def show(self, ended: bool) -> None:
        """How far everything is, if it is time to say so."""
        terminal = sys.stdout.isatty()
        if not ended and not (terminal and time.monotonic() - self._since > _PAUSE):
            return
        self._since = time.monotonic()
        states = {run.label: state_of(run, self.place, {}) for run in self.runs}
        said = summary(self.runs, states, self.at_once)
        if not terminal:
            tell(said)
            return
        going = [
            f"{run.words} {100 * states[run.label].step // run.steps}%"
            for run in self.runs
            if states[run.label].phase is Phase.running
        ]
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[2K{cut('; '.join([said, *going]), width)}", end="", file=LastingOutput(), flush=True)
        self._line = True
