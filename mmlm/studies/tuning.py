"""The value that was best for each cell, by the short runs that tried it."""

import json
import math
from collections.abc import Mapping, Sequence

from mmlm.core.figure import declared
from mmlm.record.folder import write_whole
from mmlm.reports.run_folder import read_run_folder
from mmlm.studies.grid import Run
from mmlm.studies.place import Place
from mmlm.studies.progress import Phase, State
from mmlm.studies.settings import Study

TUNED = "tuned.json"
"""In the study's folder: cell, values that were tried, what they scored, and the one that was taken."""


def tuned_values(study: Study, runs: Sequence[Run], states: Mapping[str, State], place: Place) -> dict[str, float]:
    """By cell: the value whose run scored best on the first metric of the first split, of those that are all done.

    A cell of which a run is not done, or has no such score, is not in it. Of equal scores the smaller value counts.
    """
    split, metric = study.splits[0], study.metrics[0]
    found: dict[str, float] = {}
    record: dict[str, dict[str, float]] = {}
    for cell in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == cell]
        if any(states[run.label].phase is not Phase.done for run in own):
            continue
        scores: dict[float, float] = {}
        for run in own:
            assert run.tuned is not None, "these are the runs that tune"
            folder = read_run_folder(run.folder)
            of_split = None if folder.scores is None else folder.scores.splits.get(split)
            value = None if of_split is None else of_split.values.get(metric)
            if value is not None and math.isfinite(value):
                less = declared(folder.figures.evaluation, metric).higher_is_better is False
                scores[run.tuned] = -value if less else value
        if len(scores) == len(own):
            found[cell] = best_value(scores)
            record[cell] = {"taken": found[cell], **{f"{value:g}": score for value, score in scores.items()}}
    if record:
        write_whole(place.folder / TUNED, json.dumps(record, indent=1) + "\n")
    return found


def best_value(scores: Mapping[float, float]) -> float:
    """The value with the highest score; the smaller of equals."""
    return min(scores, key=lambda value: (-scores[value], value))
