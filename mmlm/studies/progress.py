"""How far the runs of a study are: done, running, waiting or failed, told by their folders, wherever they run."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from signal import Signals

from mmlm.core.errors import INTERRUPTED, STOPPED
from mmlm.core.stop import KILLED, SIGNALS
from mmlm.core.wording import cut
from mmlm.record.folder import METRICS, REPORT, SCORES
from mmlm.record.lock import holder_of
from mmlm.studies.grid import Run
from mmlm.studies.place import Place, duration, is_alive

_ROW = 200_000
"""Bytes at the end of a file of metrics in which the last row is."""


class Phase(Enum):
    """What becomes of a run, as one word."""

    done = "done"
    running = "running"
    waiting = "waiting"
    failed = "failed"


@dataclass(frozen=True)
class State:
    """How far a run is."""

    phase: Phase
    step: int = 0
    """Optimizer steps whose metrics are written."""
    seconds: float = 0.0
    """Of training so far."""
    note: str = ""
    """What else there is to say, in a few words; of a failed run, why."""


def state_of(run: Run, place: Place, jobs: Mapping[str, str]) -> State:
    """How far a run is. ``jobs`` are the states of SLURM's tasks, such as ``{"7_3": "PENDING"}``."""
    step, seconds = last_row(run.folder)
    if step >= run.steps and (run.folder / REPORT).is_file() and (run.folder / SCORES).is_file():
        return State(Phase.done, step, seconds)
    at = f" at step {step}" if step else ""
    task, status = place.task(run.label), place.status(run.label)
    holder = holder_of(run.folder)
    if holder is not None:
        return State(Phase.running, step, seconds, holder)
    if task is None:
        return State(Phase.waiting, step, seconds, f"begun, and stopped{at}" if step else "")
    if status is None:
        if task.job is not None and task.job in jobs:
            queued = jobs[task.job] in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
            note = f"job {task.job}"
            return State(Phase.waiting if queued else Phase.running, step, seconds, note)
        if is_alive(task):
            return State(Phase.running, step, seconds, "starting")
        if task.job is not None:
            return State(Phase.waiting, step, seconds, f"job {task.job} is gone{at}")
        return State(Phase.failed, step, seconds, f"was cut off{at}")
    if status == 0:  # another number of steps was asked for, or its files were removed
        return State(Phase.waiting, step, seconds, f"ended{at}")
    if was_stopped(status):
        return State(Phase.waiting, step, seconds, f"stopped{at}")
    return State(Phase.failed, step, seconds, why(status, place.last_words(run.label)))


def was_stopped(status: int) -> bool:
    """Whether a run ended since it was asked to: by a signal that asks, or after it has saved."""
    return status in (STOPPED, INTERRUPTED) or (status - KILLED) in SIGNALS or -status in SIGNALS


def why(status: int, last_words: str) -> str:
    """Why a run has failed, in one line."""
    number = -status if status < 0 else status - KILLED
    if number > 0:
        with suppress(ValueError):
            return f"ended by {Signals(number).name}"
    return cut(last_words, 160) if last_words else f"ended with status {status}"


def last_row(folder: Path) -> tuple[int, float]:
    """Step and seconds of the last whole row of a run's metrics; 0 and 0 before there is one."""
    file = folder / METRICS
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _ROW))
            lines = opened.read().split(b"\n")[:-1]  # behind the last line break is nothing, or half a row
    except OSError:
        return 0, 0.0
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return int(row["step"]), float(row["seconds"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0, 0.0


def table(runs: Sequence[Run], states: Mapping[str, State]) -> list[str]:
    """Lines: the grid of cells and seeds, then what there is to say of single runs."""
    cells, seeds = list(dict.fromkeys(run.cell for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    by_place = {(run.cell, run.seed): _word(run, states[run.label]) for run in runs if run.tuned is None}
    lines = []
    if by_place:
        rows = [["cell", *(f"seed={seed}" for seed in seeds if any((cell, seed) in by_place for cell in cells))]]
        seeds = [seed for seed in seeds if any((cell, seed) in by_place for cell in cells)]
        rows += [[cell, *(by_place.get((cell, seed), "") for seed in seeds)] for cell in cells]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += [
            "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    told = [
        f"{run.words}: {states[run.label].phase.value}: {states[run.label].note}"
        for run in runs
        if states[run.label].note and states[run.label].phase is not Phase.running
    ]
    return [*lines, *([""] if lines and told else []), *told]


def _word(run: Run, state: State) -> str:
    """``done``, or how far it is in per cent."""
    if state.phase is Phase.done or not state.step:
        return state.phase.value
    return f"{state.phase.value} {100 * min(state.step, run.steps) // run.steps}%"


def summary(runs: Sequence[Run], states: Mapping[str, State], at_once: int, beside: float = 0.0) -> str:
    """``3 done, 1 running, 12 waiting, 0 failed; about 5 min left``.

    Time is left for what is not done, as long as the steps of its cell, or else of the others, have taken; ``beside``
    are seconds of each run besides its steps. Nothing is said of it before a step has been timed.
    """
    phases = [states[run.label].phase for run in runs]
    said = ", ".join(f"{phases.count(phase)} {phase.value}" for phase in Phase)
    left = seconds_left(runs, states, beside) / max(1, at_once)
    if not any(state.phase is not Phase.done for state in states.values()):
        return said
    return said if math.isnan(left) else f"{said}; about {duration(left)} left"


def seconds_left(runs: Sequence[Run], states: Mapping[str, State], beside: float) -> float:
    """Of all that is not done, one after the other; NaN if no step has been timed."""
    paces: dict[str, list[float]] = {}
    for run in runs:
        state = states[run.label]
        if state.step and state.seconds > 0:
            paces.setdefault(run.cell, []).append(state.seconds / state.step)
    everyone = [pace for of_cell in paces.values() for pace in of_cell]
    if not everyone:
        return math.nan
    total = 0.0
    for run in runs:
        state = states[run.label]
        if state.phase is not Phase.done:
            own = paces.get(run.cell, everyone)
            total += max(0, run.steps - state.step) * sum(own) / len(own) + beside
    return total
