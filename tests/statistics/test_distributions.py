"""Student's t against its tables and its closed forms."""

import math

import pytest

from mmlm.statistics.distributions import NORMAL, student_cdf, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062047), (2, 4.3026527), (5, 2.5705818), (7, 2.3646243), (30, 2.0422725)]
)
def test_quantiles_of_the_tables(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-7)
    assert student_quantile(0.025, freedom) == pytest.approx(-quantile, abs=1e-7)


@pytest.mark.parametrize("value", [-40.0, -1.3, 0.0, 0.2, 3.0, 500.0])
def test_the_closed_forms_of_one_and_two_degrees_of_freedom(value):
    assert student_cdf(value, 1) == pytest.approx(0.5 + math.atan(value) / math.pi, abs=1e-13)
    assert student_cdf(value, 2) == pytest.approx(0.5 + value / (2 * math.sqrt(2 + value**2)), abs=1e-13)


def test_a_quantile_is_where_the_distribution_says():
    for freedom in (1.5, 4, 11.2, 250, 1e5, 1e9):
        for share in (0.001, 0.3, 0.5, 0.975, 0.99999):
            assert student_cdf(student_quantile(share, freedom), freedom) == pytest.approx(share, rel=1e-9)


def test_it_becomes_normal():
    assert student_quantile(0.975, 1e6) == pytest.approx(NORMAL.inv_cdf(0.975), abs=1e-5)
    assert student_cdf(1.2, 1e8) == NORMAL.cdf(1.2)
