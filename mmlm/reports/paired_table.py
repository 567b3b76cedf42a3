"""Differences of runs from the first of them, as a Markdown table."""

from collections.abc import Iterator, Mapping

from mmlm.core.figure import declared, shown_in
from mmlm.reports.comparison import figures_of
from mmlm.reports.paired import Items, paired_difference, read_items
from mmlm.reports.run_folder import RunFolder
from mmlm.statistics.single_runs import Difference

SEEDS = (
    "Intervals, p and the last column are over the images and captions of a split, drawn by concept. Each line is one "
    "run against one run: how much another seed of training would move the difference is not in it. Train several "
    "seeds of both to know that."
)
EXPLAINED = (
    "`could show`: the smallest true difference that this split would have shown (p < 0.05) in four of five cases."
)


def difference_table(runs: Mapping[str, RunFolder]) -> str | None:
    """The table, with what is and is not in it; None if no two runs have scores item by item of the same items."""
    (first, base), *others = runs.items()
    figures = figures_of(runs).evaluation
    own = read_items(base.path)
    lines: list[str] = []
    for name, run in others:
        theirs = read_items(run.path)
        for split in dict.fromkeys(split for split, _ in own):
            names = [figure for of_split, figure in own if of_split == split and (split, figure) in theirs]
            compared = shown_in("compare", figures, names) if figures else names
            for figure, found in _differences(compared, split, own, theirs):
                share = declared(figures, figure).share
                lines.append(f"| `{split}` | {name} - {first} | {figure} | {' | '.join(_cells(found, share))} |")
    if not lines:
        return None
    head = "| split | runs | score | from | to | difference | 95% | p | could show |"
    return "\n".join([head, "|---|---|---|--:|--:|--:|--:|--:|--:|", *lines, "", EXPLAINED, SEEDS])


def _differences(
    figures: list[str], split: str, own: Mapping[tuple[str, str], Items], theirs: Mapping[tuple[str, str], Items]
) -> Iterator[tuple[str, Difference]]:
    for figure in figures:
        found = paired_difference(own[split, figure], theirs[split, figure])
        if found is not None:
            yield figure, found


def _cells(found: Difference, share: bool) -> Iterator[str]:
    """The numbers of a row; shares in per cent."""
    factor, digits = (100, 1) if share else (1, 2)
    yield f"{factor * found.first:.{digits}f}"
    yield f"{factor * found.second:.{digits}f}"
    yield f"{factor * found.value:+.{digits}f}"
    yield f"{factor * found.low:+.{digits}f} to {factor * found.high:+.{digits}f}"
    yield f"{found.p:.3f}" if found.p >= 0.001 else "<0.001"
    yield f"{factor * found.detectable:.{digits}f}"
