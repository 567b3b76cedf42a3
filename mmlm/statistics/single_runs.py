"""Two runs of one seed each, on the same items: the difference of a score, its interval, p, and what could be shown.

All of it is over items, in clusters of one concept. What another seed of training would give is not in it, and cannot
be: that takes several seeds (``contrasts.py``).
"""

from dataclasses import dataclass

import numpy as np

from mmlm.core.intervals import Z
from mmlm.statistics.clusters import Floats, Integers

DRAWS = 2000
"""Of the bootstrap, and of the signs that give p."""
POWER = 0.8416212335729143
"""A standard normal number is below it with a probability of 80%."""
AT_ONCE = 2_000_000
"""Random numbers that are held at a time."""


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


def item_difference(first: Floats, second: Floats, concept: Integers, seed: int = 0) -> Difference | None:
    """The difference over the same items, float64[N] each and int64[N]; None with fewer than two concepts."""
    difference = second - first
    _, cluster, sizes = np.unique(concept, return_inverse=True, return_counts=True)
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
        first=float(first.mean()),
        second=float(second.mean()),
        low=float(low),
        high=float(high),
        p=float((1 + as_large.sum()) / (1 + DRAWS)),
        detectable=(Z + POWER) * error,
    )
