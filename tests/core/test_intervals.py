"""Intervals of shares against the definition of Wilson's interval."""

import math
import random

import pytest

from mmlm.core.intervals import Z, share_interval, wilson


def roots(share: float, count: float) -> list[float]:
    """Wilson's bounds by their definition: the shares p with (share - p)^2 = z^2 p (1 - p) / count."""
    a, b, c = 1 + Z**2 / count, -(2 * share + Z**2 / count), share**2
    middle, half = -b / (2 * a), math.sqrt(b**2 - 4 * a * c) / (2 * a)
    return [middle - half, middle + half]


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 10), (52, 100), (5, 5)])
def test_items_that_are_independent_have_wilsons_interval(right, count):
    values = [1.0] * right + [0.0] * (count - right)
    assert share_interval(values, range(count)) == pytest.approx(roots(right / count, count), abs=1e-12)


def test_a_known_interval():
    """The interval of 3 out of 10, as it stands in the literature on the score interval."""
    assert wilson(0.3, 10) == pytest.approx((0.10779, 0.60322), abs=1e-5)


def test_copies_of_an_item_tell_no_more_than_the_item():
    values, cluster = [1.0, 0.0, 1.0, 1.0, 0.0], list("abcde")
    once = share_interval(values, cluster)
    assert share_interval(values * 20, cluster * 20) == pytest.approx(once)
    assert share_interval(values * 20, range(100)) == pytest.approx(roots(0.6, 100))
    all_right = share_interval([1.0] * 100, cluster * 20)
    assert all_right == pytest.approx(roots(1.0, 5)), "where nothing varies, clusters count"


def test_the_order_of_items_does_not_matter():
    draw = random.Random(3)
    items = [(draw.choice((0.0, 1.0)), draw.randrange(9)) for _ in range(40)]
    mixed = draw.sample(items, 40)
    assert share_interval(*zip(*mixed, strict=True)) == pytest.approx(share_interval(*zip(*items, strict=True)))


def test_no_item_has_no_interval():
    with pytest.raises(ValueError, match="no item has no interval"):
        share_interval([], [])
