"""The table of a study as Markdown: mean and deviation over seeds of each score, and what made the numbers.

Everything is computed from the study's record, so that a table in a page can be checked against it (``verify.py``).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mmlm.studies.code import MadeBy, differing
from mmlm.studies.contrast_table import contrast_tables
from mmlm.studies.contrasts import Compared
from mmlm.studies.fairness import look_lines, no_verdict, tuning_lines
from mmlm.studies.record import RecordedRun, ScoreArrays, StudyRecord, digests

MARK = " †"
"""Behind a cell with runs of other code."""


def study_report(record: StudyRecord, arrays: Sequence[ScoreArrays], compared: Sequence[Compared]) -> str:
    """The page of a study: Markdown. ``arrays`` are its scores (``all_arrays``), ``compared`` their contrasts."""
    tables = study_tables(record, arrays, compared)
    return "\n".join([f"# {record.name}", "", record.question, "", *tables, "", f"`{record.command}`"]) + "\n"


def study_tables(record: StudyRecord, arrays: Sequence[ScoreArrays], compared: Sequence[Compared]) -> list[str]:
    """The table of cells, those of contrasts, and what they depend on: the lines that ``verify`` checks."""
    return [
        *score_table(record, arrays),
        "",
        *contrast_tables(compared, no_verdict(record)),
        *_about(record),
        *tuning_lines(record),
        *look_lines(record, arrays),
        *(f"- **Not comparable:** {difference}." for difference in record.unlike),
    ]


def score_table(record: StudyRecord, arrays: Sequence[ScoreArrays]) -> Iterator[str]:
    """The lines of the table: a row for each cell that has a run, mean ± deviation over its seeds."""
    others = differing(_made(record))
    costs = ("seeds", "parameters", "steps", "TFLOPs", "memory, GB", "minutes")
    yield _line(["cell", *costs, *(_head(record, one) for one in arrays)])
    yield _line(["---", *["--:"] * (len(costs) + len(arrays))])
    for row, cell in enumerate(record.cells):
        runs = [run for run in record.runs if run.cell == cell]
        if runs:
            mark = MARK if any(run.label in others for run in runs) else ""
            name = f"{cell} (baseline)" if cell == record.baseline else cell
            about = [
                f"{name}{mark}",
                str(len(runs)),
                _range(sorted({run.parameters for run in runs})),
                _range(sorted({run.steps for run in runs})),
                f"{np.mean([run.flops for run in runs]) / 1e12:.3g}",
                f"{max(run.memory for run in runs) / 1e9:.2f}",
                f"{np.mean([run.seconds for run in runs]) / 60:.1f}",
            ]
            yield _line([*about, *(_mean(one, one.values[row]) for one in arrays)])


def _made(record: StudyRecord) -> dict[str, MadeBy]:
    return {run.label: MadeBy(run.commit, run.codes) for run in record.runs}


def _head(record: StudyRecord, one: ScoreArrays) -> str:
    name = one.name if len(record.splits) == 1 else f"{one.split}: {one.name}"
    return name + " (less is better)" * (one.figure.higher_is_better is False)


def _mean(one: ScoreArrays, values: np.ndarray) -> str:
    """``12.3 ± 0.4`` of float64[seeds], without those that are not there; a dash of none."""
    there = values[np.isfinite(values)]
    if not len(there):
        return "-"
    factor, digits = (100, 1) if one.figure.share else (1, 3)
    mean = f"{factor * there.mean():.{digits}f}"
    return mean if len(there) < 2 else f"{mean} ± {factor * there.std(ddof=1):.{digits}f}"


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _about(record: StudyRecord) -> Iterator[str]:
    """What the numbers are and depend on, as a list."""
    tuned = f"; {record.tuned}" if record.tuned else ""
    yield f"- Mean ± standard deviation over seeds; shares in per cent; {record.matched}{tuned}."
    counts = {cell: sum(run.cell == cell for run in record.runs) for cell in record.cells}
    fewest, most = min(counts.values(), default=0), len(record.seeds)
    if fewest < most:
        planned = fewest in record.looks and set(counts.values()) == {fewest}
        look = "a planned look" if planned else "no planned look"
        yield f"- **Interim**: {fewest} of {most} seeds are done in every cell; this is {look}."
    made = _made(record)
    yield f"- Code: {', '.join(sorted({found.words for found in made.values()}))}."
    others = differing(made)
    if others:
        yield f"-{MARK} Runs of other code: {', '.join(others)}."
    yield f"- Training data: {_by_cell(record.runs, None)}."
    for split in record.splits:
        protocols = sorted({run.protocols.get(split) or "unknown" for run in record.runs})
        yield f"- {split}: data {_by_cell(record.runs, split)}; protocol {', '.join(protocols)}."


def _by_cell(runs: Sequence[RecordedRun], split: str | None) -> str:
    """The digest of some data, or those of each cell where they differ."""
    found = digests(runs, split)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{digest} ({', '.join(cells)})" for digest, cells in found.items())
