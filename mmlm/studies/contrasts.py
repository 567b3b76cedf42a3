"""Every cell of a study against its baseline, by one score: the tests and intervals of its table.

All contrasts of one score are tested together (``statistics/contrasts.py``). The first score of the first split is the
one that the study was made for; the others have families of their own, and stand beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.core.figure import Figure
from mmlm.statistics.contrasts import CellMean, Contrast, cell_mean, compare_cells
from mmlm.studies.record import ScoreArrays

_FEWEST = 2
"""Seeds, and concepts, that an interval takes."""


@dataclass(frozen=True)
class Compared:
    """What one score of one split says of the cells."""

    split: str
    name: str
    """Of the score."""
    figure: Figure
    seeds: tuple[int, ...]
    """Those that are done in every cell that has any."""
    means: Mapping[str, CellMean]
    """By cell; empty if there is no contrast."""
    contrasts: tuple[Contrast, ...]
    """Of each cell, the baseline's value taken away."""
    lacking: str | None = None
    """Why there is no contrast."""
    by_item: bool = True
    """False for a score that is known as a whole only: nothing is said of other items then."""


def compare_all(scores: Sequence[ScoreArrays], baseline: str) -> list[Compared]:
    """The contrasts of each score."""
    return [compare_with(score, baseline) for score in scores]


def compare_with(score: ScoreArrays, baseline: str) -> Compared:
    """The contrasts of a score's cells with the baseline, over the seeds that are done in all of them."""
    at = [row for row, values in enumerate(score.values) if np.isfinite(values).any()]
    cells = [score.cells[row] for row in at]
    whole = np.isfinite(score.values[at]).all(axis=0) if at else np.zeros(len(score.seeds), bool)
    seeds = tuple(seed for seed, is_whole in zip(score.seeds, whole, strict=True) if is_whole)
    lacking = _lacking(score, baseline, cells, seeds)
    if lacking is not None:
        return Compared(score.split, score.name, score.figure, seeds, {}, (), lacking)
    by_item, concept = score.by_item, score.concept
    if by_item is None or concept is None:
        # Two items that are both the whole score vary as the score does from seed to seed, and not at all by item.
        by_item, concept = np.repeat(score.values[..., None], 2, axis=2), np.arange(2)
    of_cell = {cell: by_item[row][whole] for cell, row in zip(cells, at, strict=True)}
    pairs = [(baseline, cell) for cell in cells if cell != baseline]
    means = {cell: cell_mean(values, concept) for cell, values in of_cell.items()}
    contrasts = compare_cells(of_cell, concept, pairs)
    has_items = score.by_item is not None
    return Compared(score.split, score.name, score.figure, seeds, means, contrasts, by_item=has_items)


def _lacking(score: ScoreArrays, baseline: str, cells: Sequence[str], seeds: Sequence[int]) -> str | None:
    """Why the cells cannot be compared yet, or at all."""
    if baseline not in cells:
        return f"no run of the baseline {baseline} is done"
    if len(cells) < 2:
        return f"no run of another cell than {baseline} is done"
    if len(seeds) < _FEWEST:
        return f"{len(seeds)} seeds are done in every cell, and an interval takes {_FEWEST}"
    if score.concept is not None and len(np.unique(score.concept)) < _FEWEST:
        return "all of its items are of one concept"
    return None
