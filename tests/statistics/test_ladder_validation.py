"""Bands, predictions and crossings of made-up ladders hold the truth about as often as they say."""

import numpy as np
import pytest

from mmlm.statistics.ladder_validation import CROSSING, FIRST, SECOND, ladder_rates, law


def test_the_laws_cross_where_they_are_said_to():
    place = np.array([0.1, 1.0, 10.0]) * CROSSING
    assert np.sign(law(place, *SECOND) - law(place, *FIRST)).tolist() == [1, 0, -1]


def test_they_hold_the_truth():
    found = ladder_rates(seeds=5, count=40)
    for share in (found.largest, found.band, found.crossing):
        assert share.value == pytest.approx(0.95, abs=0.1)
