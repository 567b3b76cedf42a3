"""Sums by cluster and the components of variance, by plain loops and by the variances that data were made with."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import by_cluster, components


def test_sums_by_plain_loops():
    random = np.random.default_rng(0)
    values, cluster = random.normal(size=(3, 11)), np.array([5, 2, 5, 5, 9, 2, 2, 9, 40, 5, 9])
    found = by_cluster(values, cluster)
    for column, name in enumerate((2, 5, 9, 40)):
        assert found.sums[:, column] == pytest.approx(values[:, cluster == name].sum(axis=1))
        assert found.sizes[column] == (cluster == name).sum()
    assert found.means == pytest.approx(values.mean(axis=1))
    assert found.influences.mean() == pytest.approx(0)


def test_the_components_are_those_that_the_data_were_made_with():
    random = np.random.default_rng(1)
    seeds, clusters, size = 40, 300, 3
    between, items = [], []
    for _ in range(40):
        values = (
            0.5 * random.normal(size=(seeds, 1))
            + 2.0 * random.normal(size=clusters).repeat(size)
            + 1.5 * random.normal(size=(seeds, clusters * size))
        )
        found = components(by_cluster(values, np.arange(clusters).repeat(size)))
        between.append(found.between_seeds)
        items.append(found.from_items)
    assert np.mean(between) == pytest.approx(0.5**2 + 1.5**2 / (clusters * size), rel=0.1)
    assert np.mean(items) == pytest.approx(2.0**2 / clusters, rel=0.1)


def test_clusters_of_one_size_give_the_textbook_of_two_crossed_factors():
    values = np.random.default_rng(2).normal(size=(4, 6)) + np.arange(6)
    found = components(by_cluster(values, np.arange(6)))
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    both = values - rows[:, None] - columns + values.mean()
    shared = (both**2).sum() / (3 * 5) / (4 * 6)
    assert found.between_seeds == pytest.approx(rows.var(ddof=1))
    assert found.from_items == pytest.approx(columns.var(ddof=1) / 6 - shared)
    assert found.of_mean == pytest.approx(rows.var(ddof=1) / 4 + columns.var(ddof=1) / 6 - shared)


@pytest.mark.parametrize(
    ("values", "cluster", "message"),
    [
        (np.zeros(3), np.zeros(3), "must be seeds by items"),
        (np.zeros((2, 3)), np.zeros(2), "must be seeds by items"),
        (np.zeros((2, 0)), np.zeros(0), "must be seeds by items"),
        (np.array([[1.0, np.nan]]), np.arange(2), "not finite"),
    ],
)
def test_what_cannot_be_summed_is_refused(values, cluster, message):
    with pytest.raises(ArgumentError, match=message):
        by_cluster(values, cluster)


@pytest.mark.parametrize(("seeds", "cluster"), [(1, [0, 1]), (3, [7, 7])])
def test_one_seed_or_one_cluster_does_not_vary(seeds, cluster):
    with pytest.raises(ArgumentError, match="at least 2 of 2"):
        components(by_cluster(np.zeros((seeds, 2)), np.array(cluster)))
