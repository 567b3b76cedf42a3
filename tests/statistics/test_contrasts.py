"""A study's rows: what stands in them, by the formulas of its files, and what is refused."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.contrasts import cell_mean, compare_cells
from mmlm.statistics.power import detectable_in_deviations
from mmlm.statistics.sign_flips import sign_flip_test

CLUSTER = np.arange(200) // 2


def study(seeds=8, gain=0.1, seed=0):
    random = np.random.default_rng(seed)
    shared = random.normal(size=200) + 0.1 * random.normal(size=(seeds, 1))
    cells = {
        name: shared + 0.02 * random.normal(size=(seeds, 1)) + 0.3 * random.normal(size=(seeds, 200)) for name in "abc"
    }
    cells["b"] = cells["b"] + gain
    return cells


def test_a_row_by_its_formulas():
    cells = study()
    b, c = compare_cells(cells, CLUSTER, [("a", "b"), ("a", "c")])
    means = {name: values.mean(axis=1) for name, values in cells.items()}
    apart = np.stack([means["b"] - means["a"], means["c"] - means["a"]], axis=1)
    tested = sign_flip_test(apart)
    assert (b.first, b.second, b.difference) == ("a", "b", pytest.approx(apart[:, 0].mean()))
    assert (b.p, c.adjusted) == (tested.p[0], tested.adjusted[1])
    assert b.on_items.half == pytest.approx(2.3646243 * apart[:, 0].std(ddof=1) / np.sqrt(8))
    assert b.beyond.half >= b.on_items.half * 0.99
    assert b.detectable == pytest.approx(detectable_in_deviations(8, 2) * apart[:, 0].std(ddof=1))
    assert b.pairs.correlation == pytest.approx(np.corrcoef(means["a"], means["b"])[0, 1])
    assert b.pairs.gain > 2
    assert b.adjusted_beyond >= b.adjusted


def test_verdicts():
    b, c = compare_cells(study(), CLUSTER, [("a", "b"), ("a", "c")])
    assert (b.significant, b.significant_beyond, b.verdict()) == (True, True, "better")
    assert b.verdict(higher_is_better=False) == "worse"
    assert (c.significant, c.verdict()) == (False, "no difference found")
    (few,) = compare_cells(study(seeds=3), CLUSTER, [("a", "b")])
    assert few.verdict() == "no test is possible: the smallest p of 3 seeds is 0.25, and 0.05 takes 6"
    assert (few.significant, few.significant_beyond, few.detectable) == (False, False, None)


def test_a_difference_that_some_items_make_says_so():
    cells = study(gain=0.0)
    lucky = np.random.default_rng(4).normal(size=100).repeat(2)
    cells["b"] = cells["b"] + 2 * lucky
    (b,) = compare_cells(cells, CLUSTER, [("a", "b")])
    assert abs(b.difference) > 0.1
    assert b.verdict().endswith(" on these items")
    assert b.beyond.holds(0)
    assert not b.on_items.holds(0)


def test_the_mean_of_a_cell():
    cells = study()
    found = cell_mean(cells["a"], CLUSTER)
    means = cells["a"].mean(axis=1)
    assert (found.mean, found.deviation) == (pytest.approx(means.mean()), pytest.approx(means.std(ddof=1)))
    assert found.on_items.half < found.beyond.half


def test_the_same_cells_have_the_same_rows():
    pairs = [("a", "b"), ("b", "c")]
    assert compare_cells(study(), CLUSTER, pairs) == compare_cells(study(), CLUSTER, pairs)


@pytest.mark.parametrize(
    ("change", "contrasts", "message"),
    [
        ({"b": np.zeros((7, 200))}, [("a", "b")], "same seeds and items"),
        ({}, [("a", "d")], "contrasts: d; name two of a, b, c"),
        ({}, [], "contrasts: none"),
    ],
)
def test_cells_that_do_not_fit_are_refused(change, contrasts, message):
    with pytest.raises(ArgumentError, match=message):
        compare_cells(study() | change, CLUSTER, contrasts)
