"""Seeds and clusters drawn together, with replacement, for what has no formula: ranks, shares of wins, bands of curves.

Every resample draws as many seeds as there are and, for all of them alike, as many clusters as there are, each with all
of its items (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007). Of a mean, ``intervals.py`` knows
better with fewer than some ten seeds.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Clustered, Floats
from mmlm.statistics.distributions import NORMAL
from mmlm.statistics.intervals import Interval

DRAWN_AT_ONCE = 2_000_000
"""Clusters drawn at a time, to bound memory."""


def resampled_means(cells: Sequence[Clustered], resamples: int = 10_000, seed: int = 0) -> Floats:
    """float64[R, cells]: the means of all cells, each over the same drawn seeds and clusters of a resample.

    The cells have the same seeds and items (else ArgumentError). A difference of two columns is a paired one.
    """
    seeds, clusters = cells[0].sums.shape
    if any(cell.sums.shape != (seeds, clusters) or (cell.sizes != cells[0].sizes).any() for cell in cells):
        raise ArgumentError("cells: must have the same seeds and the same items, to be drawn together")
    random = np.random.default_rng(seed)
    sums = np.concatenate([cell.sums for cell in cells])
    found = []
    for times in _draws(clusters, resamples, random):
        chosen = random.integers(seeds, size=(len(times), seeds))
        of_seeds = (times @ sums.T).reshape(len(times), len(cells), seeds)
        drawn = np.take_along_axis(of_seeds, chosen[:, None, :], axis=2).mean(axis=2)
        found.append(drawn / (times @ cells[0].sizes)[:, None])
    return np.concatenate(found)


def _draws(clusters: int, resamples: int, random: np.random.Generator) -> Iterator[Floats]:
    """Yields float64[r, G], how often each cluster is drawn; ``resamples`` rows in all."""
    at_once = max(1, DRAWN_AT_ONCE // clusters)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def percentile_interval(draws: Floats, level: float = 0.05) -> Interval:
    """The middle of ``draws`` float64[R]."""
    low, high = np.quantile(draws, [level / 2, 1 - level / 2])
    return Interval(float(low), float(high))


def bca_interval(draws: Floats, estimate: float, left_out: Floats, level: float = 0.05) -> Interval:
    """The bias-corrected and accelerated interval (Efron, JASA 1987).

    ``left_out`` float64[S] are the estimates without each seed in turn. With few seeds it is as narrow as that of
    percentiles; it is here to be compared with.
    """
    below = (np.count_nonzero(draws < estimate) + 0.5 * np.count_nonzero(draws == estimate)) / len(draws)
    bias = NORMAL.inv_cdf(min(max(below, 1 / (2 * len(draws))), 1 - 1 / (2 * len(draws))))
    apart = left_out.mean() - left_out
    spread = float((apart**2).sum())
    acceleration = float((apart**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    shares = []
    for tail in (level / 2, 1 - level / 2):
        moved = bias + NORMAL.inv_cdf(tail)
        shares.append(NORMAL.cdf(bias + moved / (1 - acceleration * moved)))
    low, high = np.quantile(draws, shares)
    return Interval(float(low), float(high))
