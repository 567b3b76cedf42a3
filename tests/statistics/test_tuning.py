"""The best learning rate of a cell, and whether cells were tuned alike."""

import math

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.tuning import Tuning, fit_rate, why_unequal

RATES = (1e-4, 1e-3, 1e-2)


def parabola(rates, best=2e-3, bend=0.02, lowest=1.5):
    return [lowest + bend * math.log2(rate / best) ** 2 for rate in rates]


def test_three_runs_give_the_parabola_through_them():
    found = fit_rate(RATES, parabola(RATES))
    assert (found.best, found.bend, found.lowest_loss) == (pytest.approx(2e-3), pytest.approx(0.02), pytest.approx(1.5))
    assert found.regret(4e-3) == pytest.approx(0.02)
    assert found.regret(found.best) == 0
    assert (found.low, found.high, found.problem) == (None, None, None)


def test_the_interval_holds_the_best_rate_in_95_of_100():
    random = np.random.default_rng(0)
    for noise, rates in ((0.02, RATES), (None, RATES * 3)):
        held = 0
        for _ in range(400):
            losses = np.array(parabola(rates)) + 0.02 * random.normal(size=len(rates))
            found = fit_rate(rates, losses.tolist(), noise)
            held += found.best is not None and found.low <= 2e-3 <= found.high
        assert 0.92 <= held / 400 <= 0.98


def test_noise_that_hides_the_lowest_point_leaves_the_interval_without_an_end():
    found = fit_rate(RATES, parabola(RATES, bend=0.001), noise=0.5)
    assert (found.low, found.high) == (0.0, math.inf)


def test_losses_that_do_not_bend_have_no_best_rate():
    for losses in ([1.0, 1.0, 1.0], [2.0, 1.5, 1.0], [1.0, 2.0, 1.0]):
        found = fit_rate(RATES, losses)
        assert (found.best, found.low, found.regret(1e-3)) == (None, None, None)
        assert "no lowest point between 0.0001 to 0.01" in found.problem


def test_a_best_rate_outside_is_a_problem():
    low, high = (fit_rate(RATES, parabola(RATES, best)) for best in (1e-5, 0.1))
    assert low.problem == "the best rate (1e-05) lies outside of those tried, 0.0001 to 0.01; try lower ones"
    assert high.problem.endswith("try higher ones")


@pytest.mark.parametrize(
    ("rates", "losses", "message"),
    [
        ([1e-3, 1e-2, 1e-3], [1, 2, 1], "2 different ones must be at least 3"),
        ([1e-3, 1e-2, 0.0], [1, 2, 1], "above 0"),
        ([1e-3, 1e-2, 1e-1], [1, 2, math.nan], "diverged"),
        ([1e-3, 1e-2, 1e-1], [1, 2], "as many as the rates"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rates, losses, message):
    with pytest.raises(ArgumentError, match=message):
        fit_rate(rates, losses)


def tuned(rates=RATES, best=2e-3, rate=2e-3):
    return Tuning(fit_rate(rates, parabola(rates, best)), rate)


def test_cells_tuned_alike_have_a_verdict():
    assert why_unequal({"a": tuned(), "b": tuned(best=1e-3, rate=1e-3)}) is None
    assert why_unequal({"a": Tuning(None, 1e-3), "b": Tuning(None, 1e-3)}) is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Tuning(None, 1e-3), "b was not tuned, and a was"),
        (tuned((1e-4, 1e-3, 1e-2, 3e-3)), "a was tuned less: 3 rates against 4 of b"),
        (tuned((1e-3, 2e-3, 4e-3)), "b was tuned less: over a factor of 4 against 100 of a"),
        (tuned(best=1.0), "b: the best rate (1) lies outside of those tried, 0.0001 to 0.01; try higher ones"),
        (tuned(rate=1.6e-2), "b was trained at 0.016, which costs 0.18 against its best, 0.002"),
    ],
)
def test_cells_tuned_otherwise_have_none(other, reason):
    assert why_unequal({"a": tuned(), "b": other}, largest_regret=0.1) == reason


def test_untuned_cells_at_different_rates_have_none():
    assert "different rates: 0.001, 0.002" in why_unequal({"a": Tuning(None, 1e-3), "b": Tuning(None, 2e-3)})
