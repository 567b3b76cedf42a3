"""Where two recipes change places."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.crossing import find_crossing
from mmlm.statistics.scaling import Ladder

COMPUTE = np.geomspace(1e12, 1e14, 5)


def losses(floor, scale, exponent, seeds=8, noise=0.002, seed=0, shared=0.01):
    own, common = np.random.default_rng(seed), np.random.default_rng(99)
    mean = floor + scale * (COMPUTE / 1e13) ** -exponent
    return mean * (1 + shared * common.normal(size=(seeds, 1)) + noise * own.normal(size=(seeds, 5)))


def test_laws_that_cross_do_so_within_the_interval():
    # 1.2 + 0.8 x = 1.0 + x**1.5 at x = 1: both are 2.
    first, second = Ladder(COMPUTE, losses(1.2, 0.8, 0.2)), Ladder(COMPUTE, losses(1.0, 1.0, 0.3, seed=1))
    found = find_crossing(first, second, 300)
    assert found.interval.holds(1e13)
    assert found.at == pytest.approx(1e13, rel=0.5)
    assert found.probability > 0.95
    assert found.better_at(1e12) < 0.05
    assert found.better_at(1e14) > 0.95
    assert found.in_words("contrastive", "joint").startswith("above 10^1")
    assert "joint is better with probability" in found.in_words("contrastive", "joint")
    assert found.near(1e13)
    assert not found.near(1e15)


def test_the_other_way_round_is_the_same_crossing():
    first, second = Ladder(COMPUTE, losses(1.2, 0.8, 0.2)), Ladder(COMPUTE, losses(1.0, 1.0, 0.3, seed=1))
    forth, back = find_crossing(first, second, 100), find_crossing(second, first, 100)
    assert back.at == pytest.approx(forth.at)
    assert back.second_better == pytest.approx(1 - forth.second_better)
    assert "joint is better" in back.in_words("joint", "contrastive")


def test_what_seeds_have_in_common_does_not_widen_it():
    ends = []
    for shared in (0.0, 0.03):
        first = Ladder(COMPUTE, losses(1.2, 0.8, 0.2, shared=shared))
        second = Ladder(COMPUTE, losses(1.0, 1.0, 0.3, seed=1, shared=shared))
        interval = find_crossing(first, second, 300).interval
        ends.append(np.log(interval.high / interval.low))
    assert ends[1] < 2 * ends[0]


def test_recipes_that_do_not_cross():
    first, second = Ladder(COMPUTE, losses(1.0, 1.0, 0.2)), Ladder(COMPUTE, losses(0.8, 0.8, 0.2, seed=1))
    found = find_crossing(first, second, 100)
    assert (found.at, found.interval) == (None, None)
    assert found.in_words("a", "b") == "no crossing up to 10^15.0 FLOPs: b is better there with probability 1.00"
    assert not found.near(1e13)


def test_one_seed_each_is_possible_and_other_seeds_are_refused():
    first = Ladder(COMPUTE, losses(1.2, 0.8, 0.2, seeds=1))
    found = find_crossing(first, Ladder(COMPUTE, losses(1.0, 1.0, 0.3, seeds=1, seed=1)), 100)
    assert 0 <= found.probability <= 1
    with pytest.raises(ArgumentError, match="1 and 8 seeds"):
        find_crossing(first, Ladder(COMPUTE, losses(1.0, 1.0, 0.3)))
