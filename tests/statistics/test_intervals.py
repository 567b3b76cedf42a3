"""Intervals of means: Student's t where only seeds vary, the normal one where only items do, and between the two."""

import math

import numpy as np
import pytest

from mmlm.statistics.clusters import Components
from mmlm.statistics.intervals import Interval, critical_value, mean_interval, seeds_interval


def test_over_seeds_it_is_students():
    found = seeds_interval(3.0, Components(4.0, 1.0, seeds=8, clusters=100))
    assert found.half == pytest.approx(2.3646243 * 2 / math.sqrt(8))
    assert found.holds(3.0)
    assert not found.holds(found.high + 1e-9)


def test_without_an_error_of_items_both_are_equal():
    parts = Components(4.0, 0.0, seeds=3, clusters=50)
    assert mean_interval(0.0, parts).half == pytest.approx(seeds_interval(0.0, parts).half)


def test_with_equal_seeds_only_items_count():
    parts = Components(0.0, 0.09, seeds=3, clusters=10**9)
    assert mean_interval(1.0, parts).half == pytest.approx(1.959964 * 0.3, rel=1e-6)


def test_the_critical_value_lies_between_that_of_seeds_and_that_of_items():
    for items in (0.01, 0.3, 1.0, 5.0, 100.0):
        value = critical_value(Components(1.0, items, seeds=4, clusters=200), 0.05)
        assert 1.97 < value < 3.1825
    assert critical_value(Components(0.0, 0.0, seeds=4, clusters=200), 0.05) == pytest.approx(3.1824463)
    assert critical_value(Components(1e-200, 1e-200, seeds=4, clusters=200), 0.05) > 1.97


def test_a_wider_level_is_narrower():
    parts = Components(1.0, 1.0, seeds=5, clusters=20)
    assert mean_interval(0, parts, 0.2).half < mean_interval(0, parts, 0.05).half < mean_interval(0, parts, 0.01).half
    assert Interval(1.0, 3.0).half == 1


@pytest.mark.parametrize("ratio", [0.3, 1.5])
@pytest.mark.parametrize("seeds", [3, 6])
def test_it_holds_the_truth_whichever_share_is_of_items(seeds, ratio):
    """``ratio`` is the error that items bring over that of seeds. Satterthwaite's would hold 92.3% at 3 and 0.3."""
    random = np.random.default_rng(seeds)
    held = 0
    for _ in range(3000):
        of_seeds = random.chisquare(seeds - 1) / (seeds - 1)
        of_items = ratio**2 / seeds * random.chisquare(149) / 149
        mean = math.sqrt((1 + ratio**2) / seeds) * random.normal()
        held += mean_interval(mean, Components(of_seeds, of_items, seeds, 150)).holds(0.0)
    assert 0.93 <= held / 3000 <= 0.97
