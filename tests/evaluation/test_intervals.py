"""Intervals of means and levels of chance, against closed forms and against counting every case."""

import math
from itertools import combinations

import pytest
import torch

from mmlm.core.intervals import Z
from mmlm.evaluation.intervals import mean_intervals, recall_by_chance, resampled_sums


def test_the_bootstrap_of_many_items_is_near_the_normal_interval():
    values = torch.linspace(0, 1, 400)[:, None]
    low, high = mean_intervals(values, torch.arange(400), resamples=4000)[0].tolist()
    error = values.std(unbiased=False).item() / math.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - Z * error, 0.5 + Z * error), abs=0.004)


def test_drawn_clusters_come_whole_and_as_many_as_there_are():
    cluster = torch.tensor([0, 0, 1, 2, 2, 2])
    values = torch.tensor([[1.0, 0], [1, 0], [0, 1], [10, 0], [10, 0], [10, 0]])
    drawn = resampled_sums(values, cluster, seed=0, resamples=50)
    whole = drawn[:, 0] // 30 + drawn[:, 0] % 30 // 2 + drawn[:, 1]
    assert (whole == 3).all()
    assert drawn.unique(dim=0).shape[0] > 3
    assert torch.equal(drawn, resampled_sums(values, cluster, seed=0, resamples=50))


def test_no_item_has_no_interval():
    with pytest.raises(ValueError, match="no item has no interval"):
        mean_intervals(torch.zeros(0, 1), torch.zeros(0))


@pytest.mark.parametrize("cutoff", [1, 2, 5, 10])
def test_recall_by_chance_is_that_of_all_orders(cutoff):
    """Counted over every set of places that the right candidates can have."""
    expected = []
    for positives in (1, 2, 3):
        places = list(combinations(range(6), positives))
        expected.append(sum(min(chosen) < cutoff for chosen in places) / len(places))
    found = recall_by_chance(torch.tensor([1, 2, 3]), 6, cutoff)
    assert found == pytest.approx(sum(expected) / 3)
