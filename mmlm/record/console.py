"""The terminal output of a run: lines, a header, and a progress bar."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO, cast

import rich.console
import rich.progress
import rich.table
import rich.text

from mmlm.core.output import LastingOutput


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
        self._bars = _Bars(self._rich)
        self._activity: Activity | None = None
        self._plain_seconds = plain_seconds
        self._clock = clock

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self._rich.print(text, markup=False)

    def listing(self, head: str, items: Sequence[str]) -> None:
        """Prints ``head: one, two, three``; a terminal gets several lines rather than one that it would break."""
        lines = [f"{head}:"]
        for number, item in enumerate(items, start=1):
            more = f" {item}{',' * (number < len(items))}"
            if self._rich.is_terminal and len(lines[-1]) + len(more) > self._rich.width:
                lines.append(" ")
            lines[-1] += more
        for line in lines:
            self.line(line)

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
        return Progress(self._rich, self._bars, total_steps, start, self._plain_seconds, self._clock)

    @contextmanager
    def activity(self) -> Iterator["Activity"]:
        """The display, as a context, of work that tells what it does before each batch (an evaluation)."""
        with Activity(self._rich, self._bars, self._plain_seconds, self._clock) as activity:
            self._activity = activity
            try:
                yield activity
            finally:
                self._activity = None

    def doing(self, what: str) -> None:
        """Tells the activity that is displayed, if one is, what is begun."""
        if self._activity is not None:
            self._activity.update(what)


@dataclass(frozen=True)
class _Text:
    """What stands behind a bar, and where it may be cut: never within a number, which would be another number."""

    text: str
    end: str = ""
    """Kept where the text is cut."""
    between: str = " "
    """What stands between parts that stay whole."""

    def within(self, room: int) -> str:
        """As many whole parts as fit into ``room`` characters, and the end."""
        if len(self.text) + len(self.end) <= room:
            return self.text + self.end
        kept = self.text[: max(0, room - len(self.end) - 1) + len(self.between)]
        shown = f"{kept[: max(0, kept.rfind(self.between))].rstrip()}…{self.end}"
        return shown if len(shown) <= room else "…"


class _Bars:
    """The bars of a terminal, one below the other: what a run has done, and what it does at the moment."""

    def __init__(self, console: rich.console.Console) -> None:
        self._console = console
        self._shown: rich.progress.Progress | None = None
        self._heads: dict[rich.progress.TaskID, str] = {}
        self._bar_width = 0
        """Characters of a bar."""

    def add(self, head: str, total: int | None, completed: int = 0) -> rich.progress.TaskID:
        """Shows one more bar; the first one begins to draw. ``total`` None is a bar without an end."""
        if self._shown is None:
            self._bar_width = 20 if self._console.width >= 100 else 10
            self._shown = rich.progress.Progress(
                rich.progress.TextColumn("{task.fields[head]}", markup=False),
                rich.progress.BarColumn(bar_width=self._bar_width),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
                refresh_per_second=4,
            )
            self._shown.start()
        task = self._shown.add_task("", total=total, completed=completed, head=head, text="")
        self._heads[task] = head
        return task

    def update(self, task: rich.progress.TaskID, head: str, text: _Text, completed: float, total: float | None) -> None:
        """Moves a bar, and writes ``head`` before it and ``text`` behind it."""
        assert self._shown is not None, "a bar is shown before it moves"
        self._heads[task] = head
        # Cut here: on a narrow terminal, rich would squeeze every column instead of the last.
        room = self._console.width - self._bar_width - max(map(len, self._heads.values())) - 2
        self._shown.update(task, completed=completed, total=total, head=head, text=text.within(room))

    def remove(self, task: rich.progress.TaskID, stays: bool) -> None:
        """Ends a bar, which ``stays`` on the terminal as it is, or goes; with the last one, the drawing ends."""
        assert self._shown is not None, "a bar is shown before it ends"
        del self._heads[task]
        if not stays:
            self._shown.remove_task(task)
        if not self._heads:
            self._shown.live.transient = not stays  # or a blank line would take the place of a bar that goes
            self._shown.stop()
            self._shown = None


class Progress:
    """The progress of a run: a live bar on a terminal, else a line per 5% of the steps or per ``plain_seconds``."""

    def __init__(
        self,
        console: rich.console.Console,
        bars: _Bars,
        total_steps: int,
        start: int,
        plain_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._console = console
        self._bars = bars
        self._total = total_steps
        self._start = start
        self._plain_seconds = plain_seconds
        self._clock = clock
        self._began = self._printed_at = clock()
        self._printed_step = start
        self._task: rich.progress.TaskID | None = None
        self._row = ""

    def __enter__(self) -> Self:
        self._began = self._printed_at = self._clock()
        if self._console.is_terminal:
            self._task = self._bars.add(self._steps(self._start), self._total, self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bars.remove(self._task, stays=True)

    def step(self, step: int) -> None:
        """Moves the bar to ``step`` optimizer steps, between two updates; a file gets no line for that."""
        if self._task is not None:
            text = _Text(f"{self._times(step)}{self._row}", between="  ")
            self._bars.update(self._task, self._steps(step), text, step, self._total)

    def update(self, step: int, values: Mapping[str, float], rate: float | None = None) -> None:
        """Shows that ``step`` optimizer steps are done, the newest ``values`` and the ``rate`` in examples a second."""
        pace = [] if rate is None else [f"{rate:.0f} examples/s"]
        self._row = "".join(f"  {part}" for part in [*pace, *(f"{name} {value:.4g}" for name, value in values.items())])
        if self._task is not None:
            self.step(step)
        elif self._is_due(step):
            self._printed_at, self._printed_step = self._clock(), step
            self._console.print(f"{self._steps(step)}  {self._times(step)}{self._row}", markup=False)

    def _is_due(self, step: int) -> bool:
        enough = step - self._printed_step >= max(1, self._total // 20)
        return enough or step >= self._total or self._clock() - self._printed_at >= self._plain_seconds

    def _steps(self, step: int) -> str:
        return f"step {step}/{self._total}"

    def _times(self, step: int) -> str:
        """The time of this process, and what is left at its mean rate; the time of evaluations counts."""
        elapsed = self._clock() - self._began
        done = step - self._start
        left = "?" if done <= 0 else duration(elapsed * (self._total - step) / done)
        return f"{duration(elapsed)} elapsed, {left} left"


_BATCH = re.compile(r"(?P<doing>.*)(?P<batch>, batch (?P<number>\d+) of (?P<total>\d+))")
"""What an evaluation says before a batch: see ``Evaluation.tick``."""


class Activity:
    """What is done at the moment: a live bar with the time elapsed on a terminal, else a line now and then.

    How often an evaluator goes through a split is known to itself only, so the bar is that of the pass at hand. It has
    its place below the bar of a run that is training, if there is one.
    """

    def __init__(
        self, console: rich.console.Console, bars: _Bars, plain_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._console, self._bars, self._plain_seconds, self._clock = console, bars, plain_seconds, clock
        self._began = self._printed_at = self._pass_began = clock()
        self._pass, self._first = "", 0
        """What the pass at hand does, and the batches that were done when it was first told of."""
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._began = self._printed_at = self._clock()
        if self._console.is_terminal:
            self._task = self._bars.add("", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bars.remove(self._task, stays=False)
            self._task = None

    def update(self, doing: str) -> None:
        """Shows what is begun; ``, batch 3 of 12`` at its end moves the bar, and tells what is left of the pass."""
        now, found = self._clock(), _BATCH.fullmatch(doing)
        elapsed, total = duration(now - self._began), None
        what, batch, done = doing, "", 0
        if found is not None:
            what, batch, done, total = found["doing"], found["batch"], int(found["number"]) - 1, int(found["total"])
            if what != self._pass or done < self._first:
                self._pass, self._pass_began, self._first = what, now, done
            if done > self._first:
                each = (now - self._pass_began) / (done - self._first)
                elapsed += f", {duration(each * (total - done))} left"
        if self._task is not None:
            self._bars.update(self._task, "", _Text(f"{elapsed}  {what}", batch), done, total)
        elif now - self._printed_at >= self._plain_seconds:
            self._printed_at = now
            self._console.print(f"{elapsed}  {doing}", markup=False)


def duration(seconds: float) -> str:
    """0:42, 12:07, 3:05:00."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
