"""The terminal output of a run: lines, a header, and a progress bar."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO, cast

import rich.console
import rich.progress
import rich.table
import rich.text

from mmlm.core.output import LastingOutput

_BAR_WIDTH = 20
"""Characters of the progress bar."""


class Console:
    """Prints to a terminal, or plain lines to a file or pipe. ``quiet`` prints nothing (ranks other than 0)."""

    def __init__(
        self,
        file: TextIO | None = None,
        quiet: bool = False,
        plain_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``file`` is None for stdout; ``plain_seconds`` is the longest time between two plain progress lines."""
        # What cannot be shown any more is no reason to stop training.
        output = cast(TextIO, LastingOutput(file))
        self._rich = rich.console.Console(file=output, quiet=quiet, highlight=False, soft_wrap=True)
        self._plain_seconds = plain_seconds
        self._clock = clock

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self._rich.print(text, markup=False)

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints a table of ``name  value`` rows: the parts and sizes of a run that is about to begin."""
        table = rich.table.Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(rich.text.Text(name), rich.text.Text(value))
        self._rich.print(table)

    def progress(self, total_steps: int, start: int = 0) -> "Progress":
        """The progress display, a context manager, of a run of ``total_steps`` optimizer steps, from ``start`` on."""
        return Progress(self._rich, total_steps, start, self._plain_seconds, self._clock)

    def activity(self) -> "Activity":
        """The display, a context manager, of work that tells what it does before each batch (an evaluation)."""
        return Activity(self._rich, self._plain_seconds, self._clock)


class Progress:
    """The progress of a run: a live bar on a terminal, else a line per 5% of the steps or per ``plain_seconds``."""

    def __init__(
        self,
        console: rich.console.Console,
        total_steps: int,
        start: int,
        plain_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._console = console
        self._total = total_steps
        self._start = start
        self._plain_seconds = plain_seconds
        self._clock = clock
        self._began = self._printed_at = clock()
        self._printed_step = start
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)

    def __enter__(self) -> Self:
        self._began = self._printed_at = self._clock()
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.fields[steps]}", markup=False),
                rich.progress.BarColumn(bar_width=_BAR_WIDTH),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "", total=self._total, completed=self._start, steps=self._steps(self._start), text=""
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, values: Mapping[str, float], rate: float | None = None) -> None:
        """Shows that ``step`` optimizer steps are done, the newest ``values`` and the ``rate`` in examples a second."""
        pace = [] if rate is None else [f"{rate:.0f} examples/s"]
        terms = [f"{name} {value:.4g}" for name, value in values.items()]
        text = "  ".join([*pace, f"{self._left(step)} left", *terms])
        if self._bar is not None:
            # Cut here: on a narrow terminal, rich would squeeze every column instead of the last.
            room = max(1, self._console.width - _BAR_WIDTH - len(self._steps(step)) - 2)
            text = text if len(text) <= room else f"{text[: room - 1]}…"
            self._bar.update(self._task, completed=step, steps=self._steps(step), text=text)
        elif self._is_due(step):
            self._printed_at, self._printed_step = self._clock(), step
            self._console.print(f"step {self._steps(step)}  {text}", markup=False)

    def _is_due(self, step: int) -> bool:
        enough = step - self._printed_step >= max(1, self._total // 20)
        return enough or step >= self._total or self._clock() - self._printed_at >= self._plain_seconds

    def _steps(self, step: int) -> str:
        return f"{step}/{self._total}"

    def _left(self, step: int) -> str:
        """The time left, at the mean rate since this process began to train; the time of evaluations counts."""
        if step <= self._start:
            return "?"
        return duration((self._clock() - self._began) * (self._total - step) / (step - self._start))


_BATCH = re.compile(r"(?P<doing>.*), batch (?P<number>\d+) of (?P<total>\d+)")
"""What an evaluation says before a batch: see ``Evaluation.tick``."""


class Activity:
    """What is done at the moment: a live bar with the time elapsed on a terminal, else a line now and then.

    How often an evaluator goes through a split is known to itself only, so the bar is that of the pass at hand.
    """

    def __init__(self, console: rich.console.Console, plain_seconds: float, clock: Callable[[], float]) -> None:
        self._console, self._plain_seconds, self._clock = console, plain_seconds, clock
        self._began = self._printed_at = clock()
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)

    def __enter__(self) -> Self:
        self._began = self._printed_at = self._clock()
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(bar_width=_BAR_WIDTH),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, doing: str) -> None:
        """Shows what is begun; a text that ends in ``, batch 3 of 12`` moves the bar."""
        now = self._clock()
        text = f"{duration(now - self._began)}  {doing}"
        if self._bar is not None:
            found = _BATCH.fullmatch(doing)
            done, total = (int(found["number"]) - 1, int(found["total"])) if found else (0, None)
            room = max(1, self._console.width - _BAR_WIDTH - 1)
            text = text if len(text) <= room else f"{text[: room - 1]}…"
            self._bar.update(self._task, completed=done, total=total, text=text)
        elif now - self._printed_at >= self._plain_seconds:
            self._printed_at = now
            self._console.print(text, markup=False)


def duration(seconds: float) -> str:
    """0:42, 12:07, 3:05:00."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
