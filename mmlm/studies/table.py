"""The table of a study as Markdown: mean and deviation over seeds of each score, and what made the numbers."""

from collections.abc import Iterator, Sequence

import numpy as np

from mmlm.core.errors import UserError
from mmlm.reports.protocols import unlike_protocols
from mmlm.studies.code import differing
from mmlm.studies.scores import ScoreArrays, ScoredRun
from mmlm.studies.settings import Equal, Study

MARK = " †"
"""Behind a cell with runs of other code."""


def study_report(
    name: str,
    study: Study,
    scored: Sequence[ScoredRun],
    arrays: Sequence[ScoreArrays],
    command: str,
    unlike: bool = False,
) -> str:
    """The page of a study: Markdown.

    ``scored`` are the runs that are done, ``arrays`` each score of each split, over the same cells and seeds, and
    ``command`` is the one that trains the study.
    Contrasts of cells need nothing but ``arrays``, and stand between the table and what is said of it.

    Raises UserError where validation data or protocols differ among the runs, unless ``unlike`` allows it.
    """
    differences = _unlike(study, scored)
    if differences and not unlike:
        raise UserError(
            f"{name}: {'; '.join(differences)}; evaluate the runs alike, or give unlike=true to see them all"
        )
    lines = [f"# {name}", "", study.question, "", *score_table(study, scored, arrays), ""]
    cells = arrays[0].cells if arrays else ()
    lines += [*_about(study, scored, cells), *(f"- **Not comparable:** {difference}." for difference in differences)]
    return "\n".join([*lines, "", f"`{command}`"]) + "\n"


def score_table(study: Study, scored: Sequence[ScoredRun], arrays: Sequence[ScoreArrays]) -> Iterator[str]:
    """The lines of the table: a row for each cell that has a run, mean ± deviation over its seeds."""
    others = differing({one.run.label: one.made for one in scored})
    costs = ("seeds", "parameters", "steps", "TFLOPs", "memory, GB", "minutes")
    yield _line(["cell", *costs, *(_head(study, one) for one in arrays)])
    yield _line(["---", *["--:"] * (len(costs) + len(arrays))])
    cells = arrays[0].cells if arrays else ()
    for row, cell in enumerate(cells):
        runs = [one for one in scored if one.run.cell == cell]
        if runs:
            mark = MARK if any(one.run.label in others for one in runs) else ""
            name = f"{cell} (baseline)" if cell == study.baseline else cell
            parameters = sorted({sum(one.folder.parameters.values()) for one in runs})
            flops, minutes = (
                np.mean(values)
                for values in zip(*((one.flops, one.folder.metrics.seconds / 60) for one in runs), strict=True)
            )
            about = [
                f"{name}{mark}",
                str(len(runs)),
                _range(parameters),
                _range(sorted({one.run.steps for one in runs})),
                f"{flops / 1e12:.3g}",
                f"{max(one.memory for one in runs) / 1e9:.2f}",
                f"{minutes:.1f}",
            ]
            yield _line([*about, *(_mean(one, one.values[row]) for one in arrays)])


def _head(study: Study, one: ScoreArrays) -> str:
    name = one.name if len(study.splits) == 1 else f"{one.split}: {one.name}"
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


def _about(study: Study, scored: Sequence[ScoredRun], cells: Sequence[str]) -> Iterator[str]:
    """What the numbers are and depend on, as a list."""
    equal = study.matching.equal
    matched = "each cell has its own steps" if equal is Equal.nothing else f"at equal {equal.value}"
    tuning = study.tuning
    tuned = f"; {tuning.setting} is tuned, by {len(tuning.values)} values a cell" if tuning.values else ""
    yield f"- Mean ± standard deviation over seeds; shares in per cent; {matched}{tuned}."
    counts = {cell: sum(one.run.cell == cell for one in scored) for cell in cells}
    fewest, most = min(counts.values(), default=0), len(study.seeds)
    if fewest < most:
        planned = fewest in study.looks and set(counts.values()) == {fewest}
        look = "a planned look" if planned else "no planned look"
        yield f"- **Interim**: {fewest} of {most} seeds are done in every cell; this is {look}."
    made = {one.run.label: one.made for one in scored}
    yield f"- Code: {', '.join(sorted({found.words for found in made.values()}))}."
    others = differing(made)
    if others:
        yield f"-{MARK} Runs of other code: {', '.join(others)}."
    yield f"- Training data: {_by_cell(scored, 'data.train')}."
    for split in study.splits:
        protocols = sorted({one.protocol(split) or "unknown" for one in scored})
        yield f"- {split}: data {_by_cell(scored, f'data.validation.{split}')}; protocol {', '.join(protocols)}."


def _by_cell(scored: Sequence[ScoredRun], key: str) -> str:
    """The digest of some data, or those of each cell where they differ."""
    digests: dict[str, list[str]] = {}
    for one in scored:
        cells = digests.setdefault(one.digest(key) or "unknown", [])
        if one.run.cell not in cells:
            cells.append(one.run.cell)
    if len(digests) == 1:
        return next(iter(digests))
    return ", ".join(f"{digest} ({', '.join(cells)})" for digest, cells in digests.items())


def _unlike(study: Study, scored: Sequence[ScoredRun]) -> list[str]:
    """What makes the numbers incomparable; training data may differ from cell to cell, and not within one."""
    found = []
    protocols = {
        one.run.label: {split: known[split] for split in study.splits if split in known}
        for one in scored
        if one.folder.scores is not None and (known := one.folder.scores.protocols)
    }
    told = unlike_protocols(protocols)
    if told is not None:
        found.append(told)
    for split in study.splits:
        if len(_digests(scored, f"data.validation.{split}")) > 1:
            found.append(f"the runs were scored on different data of {split}")
    for cell in dict.fromkeys(one.run.cell for one in scored):
        if len(_digests([one for one in scored if one.run.cell == cell], "data.train")) > 1:
            found.append(f"the runs of {cell} were trained on different data")
    return found


def _digests(scored: Sequence[ScoredRun], key: str) -> set[str]:
    """The digests of some data, as far as they are known."""
    return {digest for one in scored if (digest := one.digest(key)) is not None}
