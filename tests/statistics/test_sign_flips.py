"""Exact tests over seeds, against counting all signs in plain loops."""

import itertools
import math

import numpy as np
import pytest

from mmlm.statistics.sign_flips import (
    ALL_SIGNS,
    seeds_for_a_test,
    sign_flip_test,
    signs_of,
    smallest_p,
    step_down,
    why_no_test,
)


def plain_p(differences):
    """Of one contrast, by all signs of all seeds."""
    seen = abs(sum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    as_large = [abs(sum(s * d for s, d in zip(row, differences, strict=True))) >= seen - 1e-12 for row in signs]
    return sum(as_large) / len(signs)


@pytest.mark.parametrize("seeds", [2, 3, 6, 9])
def test_p_is_that_of_all_signs(seeds):
    differences = np.random.default_rng(seeds).normal(0.5, 1, size=(seeds, 3))
    found = sign_flip_test(differences)
    assert found.p == pytest.approx([plain_p(list(column)) for column in differences.T])
    assert found.smallest == 2 / 2**seeds
    assert found.p.min() >= found.smallest


def test_the_largest_of_several_by_plain_loops():
    differences = np.random.default_rng(5).normal([1.5, 0.5, 0.0], 1, size=(7, 3))
    found = sign_flip_test(differences)
    lengths = [math.sqrt(sum(d * d for d in column)) for column in differences.T]
    rows = [
        [
            abs(sum(s * d for s, d in zip(signs, column, strict=True))) / length
            for column, length in zip(differences.T, lengths, strict=True)
        ]
        for signs in itertools.product((1, -1), repeat=7)
    ]
    order = sorted(range(3), key=lambda one: -rows[0][one])
    before = 0.0
    for place, contrast in enumerate(order):
        among = order[place:]
        share = sum(max(row[one] for one in among) >= rows[0][contrast] - 1e-9 for row in rows) / len(rows)
        before = max(before, share)
        assert found.adjusted[contrast] == pytest.approx(before)
    assert (found.adjusted >= found.p - 1e-12).all()


def test_equal_contrasts_cost_nothing():
    column = np.random.default_rng(0).normal(1, 1, size=(8, 1))
    assert sign_flip_test(np.tile(column, (1, 5))).adjusted == pytest.approx(sign_flip_test(column).p.repeat(5))


def test_six_equal_signs_are_significant_and_five_are_not():
    assert sign_flip_test(np.full((6, 1), 0.3)).p[0] == 2 / 64
    assert why_no_test(6) is None
    assert seeds_for_a_test() == 6
    assert (seeds_for_a_test(0.01), seeds_for_a_test(0.25)) == (8, 3)
    assert why_no_test(3) == "no test is possible: the smallest p of 3 seeds is 0.25, and 0.05 takes 6"
    assert smallest_p(5) == 0.0625


def test_no_difference_at_all_has_p_1():
    found = sign_flip_test(np.zeros((8, 2)))
    assert (found.p, found.adjusted) == (pytest.approx([1, 1]), pytest.approx([1, 1]))


def test_scale_and_direction_do_not_matter():
    differences = np.random.default_rng(3).normal(0.4, 1, size=(8, 3))
    assert sign_flip_test(differences * [1000, -1, 1e-6]).adjusted == pytest.approx(
        sign_flip_test(differences).adjusted
    )


def test_with_many_seeds_signs_are_drawn_and_those_that_were_seen_are_one_of_them():
    assert signs_of(ALL_SIGNS).shape == (2 ** (ALL_SIGNS - 1), ALL_SIGNS)
    signs = signs_of(ALL_SIGNS + 6)
    assert (signs[0] == 1).all()
    assert 1 / len(signs) <= sign_flip_test(np.ones((ALL_SIGNS + 6, 1))).p[0] <= 5 / len(signs)


def test_step_down_keeps_the_order():
    null = np.array([[2.0, 1.0], [0.5, 1.5], [0.1, 0.2], [3.0, 0.0]])
    assert step_down(np.array([2.0, 1.0]), null) == pytest.approx([0.5, 0.5])
    assert step_down(np.array([0.2, 2.5]), null)[1] == pytest.approx(0.25)
