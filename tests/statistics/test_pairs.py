"""What pairing by seed brings."""

import math

import numpy as np
import pytest

from mmlm.statistics.pairs import Pairing, pairing


def test_correlation_and_gain_by_hand():
    first, second = np.array([1.0, 2.0, 3.0, 5.0]), np.array([2.0, 2.5, 4.5, 5.0])
    found = pairing(first, second)
    assert found.correlation == pytest.approx(np.corrcoef(first, second)[0, 1])
    apart = first.var(ddof=1) + second.var(ddof=1)
    assert found.gain == pytest.approx(apart / (second - first).var(ddof=1))
    half = math.atanh(found.interval.high) - math.atanh(found.correlation)
    assert half == pytest.approx(1.959964, abs=1e-5)


def test_pairs_that_have_nothing_in_common_gain_nothing():
    first, second = np.random.default_rng(0).normal(size=(2, 4000))
    assert pairing(first, second).gain == pytest.approx(1, abs=0.05)


def test_equal_variances_gain_one_over_what_is_left():
    random = np.random.default_rng(1)
    shared, first, second = random.normal(size=(3, 20000))
    found = pairing(3 * shared + first, 3 * shared + second)
    assert found.correlation == pytest.approx(0.9, abs=0.01)
    assert found.gain == pytest.approx(1 / (1 - found.correlation), rel=0.01)


def test_what_does_not_vary_has_no_correlation():
    assert pairing(np.ones(5), np.arange(5.0)) == Pairing(None, None, 1.0)
    assert pairing(np.ones(5), np.ones(5)) == Pairing(None, None, None)
    assert pairing(np.array([1.0]), np.array([2.0])) == Pairing(None, None, None)
    assert pairing(np.arange(3.0), np.array([1.0, 0.0, 2.0])).interval is None
