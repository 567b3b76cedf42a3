"""Seeds and clusters drawn together: means by plain loops, spread by the formula, intervals by their definitions."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.bootstrap import bca_interval, percentile_interval, resampled_means
from mmlm.statistics.clusters import by_cluster


def cells(seeds=6, clusters=40, size=3, count=2, seed=0):
    random = np.random.default_rng(seed)
    shared = random.normal(size=clusters).repeat(size)
    cluster = np.arange(clusters).repeat(size)
    return [
        by_cluster(shared + random.normal(size=(seeds, 1)) + random.normal(size=(seeds, len(cluster))), cluster)
        for _ in range(count)
    ]


def test_a_draw_of_equal_seeds_and_clusters_is_the_mean():
    values = np.tile([[1.0, 1.0, 1.0]], (4, 1))
    assert resampled_means([by_cluster(values, np.arange(3))], 50) == pytest.approx(np.ones((50, 1)))


def test_cells_are_drawn_together():
    first, _ = cells()
    same = resampled_means([first, first], 200)
    assert (same[:, 0] == same[:, 1]).all()
    assert same.std() > 0


def test_the_spread_is_that_of_seeds_and_of_clusters():
    (cell,) = cells(count=1)
    drawn = resampled_means([cell], 4000)[:, 0]
    per_cluster = cell.sums / 3
    of_seeds = cell.means.var() / 6
    of_clusters = per_cluster.mean(axis=0).var() / 40
    both = (per_cluster - per_cluster.mean(axis=0) - cell.means[:, None] + cell.means.mean()).var() / 240
    assert drawn.mean() == pytest.approx(cell.means.mean(), abs=0.03)
    assert drawn.var() == pytest.approx(of_seeds + of_clusters + both, rel=0.1)


def test_many_draws_are_taken_in_parts_and_are_the_same_each_time(monkeypatch):
    first = resampled_means(cells(), 64, seed=3)
    assert (first == resampled_means(cells(), 64, seed=3)).all()
    assert (first != resampled_means(cells(), 64, seed=4)).any()
    monkeypatch.setattr("mmlm.statistics.bootstrap.DRAWN_AT_ONCE", 100)
    assert resampled_means(cells(), 64).shape == (64, 2)


def test_cells_of_other_items_are_refused():
    with pytest.raises(ArgumentError, match="same seeds and the same items"):
        resampled_means([*cells(count=1), *cells(clusters=41, count=1)])


def test_percentiles():
    found = percentile_interval(np.arange(1001.0))
    assert (found.low, found.high) == (25, 975)


def test_bca_is_that_of_percentiles_where_nothing_is_lopsided_and_moves_where_it_is():
    values = np.random.default_rng(0).normal(size=20000)
    plain = percentile_interval(values)
    level = bca_interval(values, float(np.median(values)), np.array([-1.0, 0.0, 1.0]))
    assert (level.low, level.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    # Leaving out one lowers the estimate much more than any other raises it: a long tail upwards.
    tailed = bca_interval(values, float(np.median(values)), np.array([-3.0, 1.0, 1.0, 1.0]))
    assert tailed.low > plain.low
    assert tailed.high > plain.high
