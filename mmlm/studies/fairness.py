"""Whether a study's verdicts are fair: were its cells tuned alike, and is it looked at when that was planned?"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mmlm.statistics.looks import LookPlan, progress
from mmlm.statistics.sign_flips import smallest_p
from mmlm.statistics.tuning import FEWEST, Tuning, fit_rate, why_unequal
from mmlm.studies.record import ScoreArrays, StudyRecord

TAKEN = "taken"
"""Of the values that were tried, the one that a cell trains with."""
_LEVEL = 0.05
_FEWEST_OF_A_LOOK = 2


def tunings(record: StudyRecord) -> dict[str, Tuning]:
    """How each cell was tuned: a parabola through the scores of its short runs; empty if nothing was, or by too few."""
    found = {}
    for cell, scores in record.tuning.items():
        tried = {float(value): score for value, score in scores.items() if value != TAKEN}
        if len(tried) >= FEWEST and min(tried) > 0:
            found[cell] = Tuning(fit_rate(list(tried), [-score for score in tried.values()]), scores[TAKEN])
    return found


def no_verdict(record: StudyRecord) -> str | None:
    """Why no cell may be called the better one: one side was tuned less; None if all were tuned alike."""
    found = tunings(record)
    return why_unequal(found) if found else None


def tuning_lines(record: StudyRecord) -> Iterator[str]:
    """The best value of each cell with its interval, and what the one that was taken costs against it."""
    for cell, tuning in tunings(record).items():
        fit = tuning.fit
        assert fit is not None, "cells that were not tuned are left out"
        best = "no best value among those tried" if fit.best is None else f"best {fit.best:.3g}"
        ends = "" if fit.low is None or fit.high is None else f" [{fit.low:.3g}, {fit.high:.3g}]"
        regret = "" if tuning.regret is None else f", which costs {tuning.regret:.3g} of the first score"
        yield f"- Tuning of {cell}: {best}{ends}; {tuning.rate:.3g} was taken{regret}."
    reason = no_verdict(record)
    if reason is not None:
        yield f"- **No verdict**: {reason}."


def look_lines(record: StudyRecord, arrays: Sequence[ScoreArrays]) -> Iterator[str]:
    """By the first score: what the planned looks say by now, at a level that holds over all of them."""
    if not arrays or not record.looks or min(record.looks) < _FEWEST_OF_A_LOOK:
        return
    if smallest_p(record.looks[-1]) > _LEVEL:
        return  # no look can find anything, which the table says of the whole
    first = arrays[0]
    others = [cell for cell in first.cells if cell != record.baseline]
    if record.baseline not in first.cells or not others:
        return
    own = first.values[first.cells.index(record.baseline)]
    apart = np.stack([first.values[first.cells.index(cell)] - own for cell in others], axis=1)
    whole = np.isfinite(apart).all(axis=1)
    count = int(whole.argmin()) if not whole.all() else len(whole)
    found = progress(apart[:count], LookPlan(record.looks))
    if not found.looks:
        return
    words: Mapping[str, str] = {
        cell: "differs" if decided else f"open ({100 * (hope or 0.0):.0f}% that the last look finds it)"
        for cell, decided, hope in zip(others, found.decided, found.hopes, strict=True)
    }
    told = ", ".join(f"{cell} {said}" for cell, said in words.items())
    yield f"- Look at {found.looks[-1].seeds} of {record.looks[-1]} seeds, {first.split}: {first.name}: {told}."
