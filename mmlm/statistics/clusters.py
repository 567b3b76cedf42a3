"""Scores of seeds by items, summed over the clusters that items come in, and what varies from where.

A score of seed s over cluster g is modelled as ``mean + seed[s] + cluster[g] + both[s, g]``: two crossed factors, since
all seeds see the same items. The variance of the mean over both is then that of seeds, plus that of clusters, less that
of both together, which is in each of the two (two-way clustering: Cameron, Gelbach and Miller, JBES 2011).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmlm.core.errors import ArgumentError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Clustered:
    """Scores summed by cluster: all that a mean of a resample needs."""

    sums: Floats
    """float64[S, G]: of the items of each cluster."""
    sizes: Floats
    """float64[G]: items of each cluster."""

    @property
    def means(self) -> Floats:
        """float64[S]: the mean over all items of each seed."""
        found: Floats = self.sums.sum(axis=1) / self.sizes.sum()
        return found

    @property
    def influences(self) -> Floats:
        """float64[G]: how far each cluster moves the mean over seeds and items, as a value whose mean over clusters
        has the error of that mean (clusters of unequal size: a ratio of two sums, linearised)."""
        own: Floats = self.sums.mean(axis=0) - self.means.mean() * self.sizes
        return own * (len(self.sizes) / self.sizes.sum())


@dataclass(frozen=True)
class Components:
    """Where the variance of a mean score, or of a mean difference, comes from."""

    between_seeds: float
    """Variance of the mean on these items from seed to seed. Divided by the number of seeds, it is the mean's own."""
    from_items: float
    """Variance of the mean that the draw of clusters brings, however many seeds there are."""
    seeds: int
    clusters: int

    @property
    def of_mean(self) -> float:
        """Variance of the mean over seeds and items, for another draw of both."""
        return self.between_seeds / self.seeds + self.from_items


def by_cluster(values: Floats, cluster: Integers) -> Clustered:
    """Sums float64[S, G] of ``values`` [S, N]. Raises ArgumentError for shapes that do not fit or values not finite."""
    if values.ndim != 2 or cluster.shape != values.shape[1:] or not values.size:
        raise ArgumentError(f"values: shape {values.shape} must be seeds by items, with a cluster {cluster.shape} each")
    if not np.isfinite(values).all():
        raise ArgumentError("values: a score that is not finite has no mean; leave out the seed or the item for all")
    _, group, counts = np.unique(cluster, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], counts.cumsum()[:-1]])
    return Clustered(np.add.reduceat(values[:, order], starts, axis=1), counts.astype(np.float64))


def components(scores: Clustered) -> Components:
    """The components of the mean; at least 2 seeds and 2 clusters (ArgumentError)."""
    seeds, clusters = scores.sums.shape
    if seeds < 2 or clusters < 2:
        raise ArgumentError(f"values: {seeds} seeds of {clusters} clusters must be at least 2 of 2 to vary")
    means, influences = scores.means, scores.influences
    scale = clusters / scores.sizes.sum()
    both = (scores.sums - means[:, None] * scores.sizes) * scale - influences
    shared = float((both**2).sum()) / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
    by_items = float(influences.var(ddof=1)) / clusters
    return Components(float(means.var(ddof=1)), max(by_items - shared, 0.0), seeds, clusters)
