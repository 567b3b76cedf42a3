"""Looks while a study runs: what is spent, what is found early, and against plain counting of signs."""

import itertools
import math

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.looks import LookPlan, Spending, progress
from mmlm.statistics.sign_flips import sign_flip_test


def test_all_is_spent_at_the_end_and_little_of_it_early():
    for spending in Spending:
        assert spending.spent(1.0, 0.05) == pytest.approx(0.05)
    assert Spending.OBRIEN_FLEMING.spent(0.5, 0.05) == pytest.approx(0.0056, abs=1e-4)
    assert Spending.POCOCK.spent(0.5, 0.05) == pytest.approx(0.0310, abs=1e-4)


def test_a_single_look_is_the_test_at_the_end():
    plan = LookPlan((8,))
    for seed in range(30):
        differences = np.random.default_rng(seed).normal(0.7, 1, size=(8, 2))
        # One step: each against the largest of all.
        found = progress(differences, plan).decided
        tested = sign_flip_test(differences).adjusted
        assert any(found) == bool((tested <= 0.05).any())


def test_bounds_by_plain_counting():
    plan = LookPlan((6, 8), spending=Spending.POCOCK)
    differences = np.random.default_rng(3).normal(0.8, 1, size=(8, 1))
    found = progress(differences, plan)
    column = differences[:, 0]
    left = [(1, *signs) for signs in itertools.product((1, -1), repeat=7)]
    whole, spent, decided = len(left), 0, False
    for look, seeds in zip(found.looks, plan.seeds, strict=True):
        length = math.sqrt(sum(d * d for d in column[:seeds]))
        value = {s: abs(sum(a * b for a, b in zip(s, column[:seeds], strict=False))) / length for s in left}
        budget = math.floor(plan.allowed(plan.seeds.index(seeds)) * whole + 1e-9) - spent
        reached = [s for s in left if sum(other >= value[s] - 1e-9 for other in value.values()) <= budget]
        spent += len(reached)
        decided = decided or (1,) * 8 in reached
        left = [s for s in left if s not in reached]
        assert look.spent == pytest.approx(spent / whole)
        assert look.decided == (decided,)


def test_a_large_difference_is_found_early_and_a_cell_that_is_stopped_may_be_left_out():
    random = np.random.default_rng(0)
    differences = np.stack([random.normal(5, 1, 12), random.normal(0, 1, 12)], axis=1)
    plan = LookPlan((8, 12), spending=Spending.POCOCK)
    early = progress(differences[:9], plan)
    assert early.decided == (True, False)
    assert not early.finished
    assert early.hopes[0] is None
    assert 0 <= early.hopes[1] < 0.5
    stopped = differences.copy()
    stopped[9:, 0] = np.nan
    late = progress(stopped, plan)
    assert late.finished
    assert late.decided == (True, False)
    assert late.looks[0] == early.looks[0]
    assert late.looks[1].spent <= 0.05


def test_before_the_first_look_nothing_is_said():
    found = progress(np.ones((5, 2)), LookPlan((8, 10)))
    assert (found.looks, found.decided, found.hopes, found.finished) == ((), (), (None, None), False)


def test_hope_rises_with_the_difference():
    random = np.random.default_rng(1)
    base = random.normal(size=(8, 1))
    hopes = [progress(base - base.mean() + shift, LookPlan((8, 16))).hopes[0] for shift in (0.01, 0.3, 0.6)]
    assert hopes == sorted(hopes)
    assert hopes[0] < 0.1 < hopes[2]


def test_looks_in_vain_are_named():
    assert LookPlan((8, 16)).looks_that_can_stop() == (16,)
    assert LookPlan((8, 16), spending=Spending.POCOCK).looks_that_can_stop() == (8, 16)
    vain = progress(np.ones((8, 1)), LookPlan((8, 16)))
    assert vain.looks[0].bound == math.inf
    assert vain.decided == (False,)


def test_with_many_seeds_signs_are_drawn():
    found = progress(np.random.default_rng(0).normal(2, 1, size=(24, 1)), LookPlan((12, 24)))
    assert found.decided == (True,)
    assert found.looks[-1].spent <= 0.05


@pytest.mark.parametrize("seeds", [(), (1, 8), (8, 8), (10, 8), (3, 5)])
def test_impossible_plans_are_refused(seeds):
    with pytest.raises(ArgumentError, match="seeds: "):
        LookPlan(seeds)


def test_a_seed_that_is_missing_is_refused():
    differences = np.zeros((8, 1))
    differences[3] = np.nan
    with pytest.raises(ArgumentError, match="lacks a seed"):
        progress(differences, LookPlan((8,)))
