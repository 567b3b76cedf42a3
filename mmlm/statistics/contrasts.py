"""Cells of a study against each other: all that a row of its table says.

A contrast is the difference of two cells over the same seeds and items. All contrasts of a study are given together,
since they are tested together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.beyond import beyond_test
from mmlm.statistics.clusters import Clustered, Components, Floats, Integers, by_cluster, components
from mmlm.statistics.intervals import Interval, mean_interval, seeds_interval
from mmlm.statistics.pairs import Pairing, pairing
from mmlm.statistics.power import detectable_in_deviations
from mmlm.statistics.sign_flips import sign_flip_test, why_no_test


@dataclass(frozen=True)
class CellMean:
    """A cell by itself."""

    mean: float
    deviation: float
    """From seed to seed."""
    on_items: Interval
    """95%, for other seeds on these items."""
    beyond: Interval
    """95%, for other seeds and other items."""


@dataclass(frozen=True)
class Contrast:
    """The second cell less the first."""

    first: str
    second: str
    difference: float
    parts: Components
    """Where its variance comes from: the prior of the next study."""
    on_items: Interval
    """95%, for other seeds on these items."""
    beyond: Interval
    """95%, for other seeds and other items."""
    p: float
    """Over seeds, of this contrast alone; exact."""
    adjusted: float
    """Over seeds, among all contrasts of the study."""
    adjusted_beyond: float
    """The same for other items too; never smaller."""
    no_test: str | None
    """Why there are too few seeds for any p to reach the level, which is then not to be shown."""
    detectable: float | None
    """The smallest true difference on these items that a study like this finds in four of five cases."""
    pairs: Pairing
    level: float

    @property
    def significant(self) -> bool:
        """Whether the cells differ on these items, with at most ``level`` for any such finding of the study."""
        return self.no_test is None and self.adjusted <= self.level

    @property
    def significant_beyond(self) -> bool:
        """Whether they differ on items of this kind."""
        return self.no_test is None and self.adjusted_beyond <= self.level

    def verdict(self, higher_is_better: bool = True) -> str:
        """In words, for the table."""
        if self.no_test is not None:
            return self.no_test
        if not self.significant:
            return "no difference found"
        better = (self.difference > 0) == higher_is_better
        return f"{'better' if better else 'worse'}{'' if self.significant_beyond else ' on these items'}"


def cell_mean(values: Floats, cluster: Integers, level: float = 0.05) -> CellMean:
    """Of one cell, float64[S, N] with int64[N]; at least 2 seeds and 2 clusters (ArgumentError)."""
    scores = by_cluster(values, cluster)
    parts, mean = components(scores), float(scores.means.mean())
    return CellMean(
        mean, math.sqrt(parts.between_seeds), seeds_interval(mean, parts, level), mean_interval(mean, parts, level)
    )


def compare_cells(
    cells: Mapping[str, Floats],
    cluster: Integers,
    contrasts: Sequence[tuple[str, str]],
    level: float = 0.05,
    seed: int = 0,
) -> tuple[Contrast, ...]:
    """All contrasts, in their order: (first, second), of which the first is the baseline.

    ``cells`` has float64[S, N] each, with the same seeds in rows and the same items in columns; ``cluster`` int64[N]
    says which items belong together. ``seed`` is that of the draws of other items. Raises ArgumentError for cells that
    do not fit together, or fewer than 2 seeds or clusters.
    """
    shapes = {name: values.shape for name, values in cells.items()}
    if len(set(shapes.values())) > 1:
        raise ArgumentError(f"cells: must have the same seeds and items, but their shapes are {shapes}")
    missing = [name for pair in contrasts for name in pair if name not in cells]
    if missing or not contrasts:
        raise ArgumentError(f"contrasts: {missing[0] if missing else 'none'}; name two of {', '.join(cells)} in each")
    paired: list[Clustered] = [by_cluster(cells[second] - cells[first], cluster) for first, second in contrasts]
    parts = [components(one) for one in paired]
    tested = sign_flip_test(np.stack([one.means for one in paired], axis=1))
    beyond = beyond_test(paired, tested, seed)
    seeds = len(paired[0].means)
    in_deviations = detectable_in_deviations(seeds, len(contrasts), level)
    found = []
    for place, ((first, second), own) in enumerate(zip(contrasts, parts, strict=True)):
        difference = float(paired[place].means.mean())
        found.append(
            Contrast(
                first=first,
                second=second,
                difference=difference,
                parts=own,
                on_items=seeds_interval(difference, own, level),
                beyond=mean_interval(difference, own, level),
                p=float(tested.p[place]),
                adjusted=float(tested.adjusted[place]),
                adjusted_beyond=float(beyond.adjusted[place]),
                no_test=why_no_test(seeds, level),
                detectable=None if in_deviations is None else in_deviations * math.sqrt(own.between_seeds),
                pairs=pairing(cells[first].mean(axis=1), cells[second].mean(axis=1)),
                level=level,
            )
        )
    return tuple(found)
