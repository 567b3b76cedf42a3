"""Differences over the same items: by the plain formulas, and as wide as the truth asks for."""

import math

import numpy as np
import pytest

from mmlm.reports.paired import Items, paired_difference


def items(values, concept=None):
    count = len(values)
    concept = range(count) if concept is None else concept
    return Items(tuple(f"{row:05}" for row in range(count)), np.array(concept), np.array(values, dtype=float))


def test_the_difference_and_its_error_by_hand():
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, 400), random.normal(0.3, 1, 400)
    found = paired_difference(items(first), items(second))
    error = (second - first).std(ddof=1) / math.sqrt(400)
    assert found.value == pytest.approx((second - first).mean())
    assert found.detectable == pytest.approx(2.8016 * error, rel=1e-3)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert found.p < 0.01


def test_p_of_few_items_is_that_of_all_signs():
    # Of the 16 ways to give signs to 1, 2, 3, 4, two have a sum as large as 10.
    found = paired_difference(items([0, 0, 0, 0]), items([1, 2, 3, 4]))
    assert found.p == pytest.approx(2 / 16, abs=0.03)


def test_equal_runs_do_not_differ():
    found = paired_difference(items([0, 1, 1, 0]), items([0, 1, 1, 0]))
    assert (found.value, found.low, found.high, found.p, found.detectable) == (0, 0, 0, 1, 0)


def test_copies_of_items_make_nothing_more_certain():
    random = np.random.default_rng(1)
    first, second = random.normal(0, 1, (2, 60))
    alone = paired_difference(items(first), items(second))
    copied = paired_difference(
        items(first.repeat(5), np.arange(60).repeat(5)), items(second.repeat(5), np.arange(60).repeat(5))
    )
    assert (copied.low, copied.high, copied.p) == pytest.approx((alone.low, alone.high, alone.p))
    assert copied.detectable == pytest.approx(alone.detectable)


def test_intervals_cover_the_true_difference_and_p_is_even_where_there_is_none():
    random = np.random.default_rng(2)
    covered = significant = 0
    for trial in range(200):
        shared = random.normal(0, 1, 80)
        found = paired_difference(items(shared), items(shared + random.normal(0, 0.5, 80)), seed=trial)
        covered += found.low <= 0 <= found.high
        significant += found.p < 0.05
    assert 0.89 <= covered / 200 <= 0.99
    assert significant / 200 <= 0.1


def test_other_items_and_a_single_concept_have_no_difference():
    assert paired_difference(items([1, 2]), items([1, 2, 3])) is None
    assert paired_difference(items([1, 2], [7, 7]), items([2, 2], [7, 7])) is None
