"""Two runs on the same items: the difference of a score, its interval, p, and what the split could have shown.

All of it is over items of one split, in clusters of one concept. What another seed of training would give is not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmlm.core.errors import UserError
from mmlm.core.intervals import Z
from mmlm.record.folder import PER_ITEM
from mmlm.record.manifest import read_recorded

DRAWS = 2000
"""Of the bootstrap, and of the signs that give p."""
POWER = 0.8416212335729143
"""A standard normal number is below it with a probability of 80%."""
AT_ONCE = 2_000_000
"""Random numbers that are held at a time."""


@dataclass(frozen=True)
class Items:
    """The values of one score, item by item, in the order of ``names``, which is sorted."""

    names: tuple[str, ...]
    concept: np.ndarray
    """int64[n]."""
    values: np.ndarray
    """float64[n]."""


@dataclass(frozen=True)
class Difference:
    """Of the means of a score over the same items, the second run's minus the first's."""

    first: float
    second: float
    low: float
    """Lower end of the 95% interval of the difference."""
    high: float
    p: float
    """How often a difference as large comes about if it is a matter of chance, for each concept, which run is which."""
    detectable: float
    """The smallest true difference that a comparison of these two on this split would have found (p below 5%) in four
    of five cases."""

    @property
    def value(self) -> float:
        """The difference."""
        return self.second - self.first


def read_items(folder: Path) -> Mapping[tuple[str, str], Items]:
    """``per_item.parquet`` of a run, by split and name of the score; empty without the file. Raises UserError."""
    file = folder / PER_ITEM
    if not file.is_file():
        return {}
    try:
        table = pq.read_table(pa.BufferReader(read_recorded(file)))
        columns = {name: np.array(table[name].to_pylist()) for name in ("split", "figure", "item", "concept", "value")}
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{file}: cannot be read ({error!s:.80}); evaluate the run again") from error
    found: dict[tuple[str, str], Items] = {}
    for split, figure in dict.fromkeys(zip(columns["split"].tolist(), columns["figure"].tolist(), strict=True)):
        rows = np.flatnonzero((columns["split"] == split) & (columns["figure"] == figure))
        rows = rows[np.argsort(columns["item"][rows], kind="stable")]
        names = tuple(columns["item"][rows].tolist())
        found[split, figure] = Items(names, columns["concept"][rows].astype(np.int64), columns["value"][rows])
    return found


def paired_difference(first: Items, second: Items, seed: int = 0) -> Difference | None:
    """The difference over the items of both; None if they are not of the same items, or of fewer than two concepts."""
    if first.names != second.names:
        return None
    difference = second.values - first.values
    _, cluster, sizes = np.unique(first.concept, return_inverse=True, return_counts=True)
    count, clusters = len(difference), len(sizes)
    if clusters < 2:
        return None
    sums = np.bincount(cluster, difference, clusters)
    random = np.random.default_rng(seed)
    means, flipped = [], []
    for start in range(0, DRAWS, max(1, AT_ONCE // clusters)):
        draws = min(max(1, AT_ONCE // clusters), DRAWS - start)
        chosen = random.integers(clusters, size=(draws, clusters))
        means.append(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1))
        flipped.append((random.integers(2, size=(draws, clusters)) * 2 - 1) @ sums)
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    # Sums that differ by rounding alone are equal.
    as_large = np.abs(np.concatenate(flipped)) >= abs(sums.sum()) - 1e-9
    residuals = sums - difference.mean() * sizes
    error = float(np.sqrt((residuals**2).sum() * clusters / (clusters - 1)) / count)
    return Difference(
        first=float(first.values.mean()),
        second=float(second.values.mean()),
        low=float(low),
        high=float(high),
        p=float((1 + as_large.sum()) / (1 + DRAWS)),
        detectable=(Z + POWER) * error,
    )
