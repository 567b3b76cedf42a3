"""How large a difference a study finds: against the exact power of six seeds, and against other simulations."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Components
from mmlm.statistics.distributions import NORMAL
from mmlm.statistics.power import (
    Prior,
    Simulated,
    detectable_in_deviations,
    forecast,
    in_words,
    level_of_each,
    prior_from,
    seeds_needed,
)
from mmlm.statistics.sign_flips import sign_flip_test


def test_six_seeds_find_what_gives_all_of_them_one_sign():
    for effect in (0.5, 1.0, 2.0):
        exact = NORMAL.cdf(effect) ** 6 + NORMAL.cdf(-effect) ** 6
        assert Simulated(6).power(effect, 0.05) == pytest.approx(exact, abs=0.03)
    # The sixth root of 0.8 of a normal distribution:
    assert detectable_in_deviations(6) == pytest.approx(NORMAL.inv_cdf(0.8 ** (1 / 6)), abs=0.06)


def test_without_an_effect_power_is_the_size_of_the_test():
    assert Simulated(8).power(0.0, 0.05) == pytest.approx(12 / 256, abs=0.012)


@pytest.mark.parametrize(("seeds", "contrasts"), [(8, 1), (9, 4)])
def test_power_is_what_tests_of_drawn_studies_find(seeds, contrasts):
    random = np.random.default_rng(0)
    effect = detectable_in_deviations(seeds, contrasts)
    found = 0
    for _ in range(500):
        baseline, others = random.normal(size=(seeds, 1)), random.normal(size=(seeds, contrasts))
        differences = (others - baseline) / np.sqrt(2)
        differences[:, 0] += effect
        found += sign_flip_test(differences).adjusted[0] <= 0.05
    assert found / 500 == pytest.approx(0.8, abs=0.06)


def test_more_seeds_find_less_and_more_contrasts_need_more():
    found = [detectable_in_deviations(seeds) for seeds in (6, 7, 8, 10, 12, 20)]
    assert found == sorted(found, reverse=True)
    assert detectable_in_deviations(8, 5) > detectable_in_deviations(8, 2) > detectable_in_deviations(8, 1)
    assert detectable_in_deviations(20) == pytest.approx(2.8016 / np.sqrt(20), rel=0.1)  # as of normal numbers
    assert detectable_in_deviations(5) is None


def test_a_forecast_is_in_the_units_of_its_prior():
    alone = forecast(Prior(1.5), 8)
    assert alone.detectable == pytest.approx(1.5 * detectable_in_deviations(8))
    items = forecast(Prior(1.5, 2.0), 8)
    assert items.detectable == alone.detectable
    assert items.detectable_beyond > 2.8 * 2.0  # no number of seeds makes up for the items
    assert forecast(Prior(1.5, 2.0).on_items(4.0), 8).detectable_beyond < items.detectable_beyond
    assert forecast(Prior(1.5), 3).detectable is None
    assert forecast(Prior(1.5), 3).detectable_beyond is None


@pytest.mark.parametrize(("contrasts", "bound"), [(1, 1.96), (2, 2.21), (3, 2.35), (5, 2.51), (9, 2.69)])
def test_bounds_of_several_contrasts_with_one_baseline_are_dunnetts(contrasts, bound):
    # His table for a two-sided test with infinitely many degrees of freedom.
    assert NORMAL.inv_cdf(1 - level_of_each(contrasts, 0.05) / 2) == pytest.approx(bound, abs=0.005)


def test_as_many_seeds_as_needed_and_no_more():
    prior = Prior(1.5)
    needed = seeds_needed(prior, 1.0)
    assert forecast(prior, needed).detectable <= 1.01
    assert forecast(prior, needed - 1).detectable > 0.99
    assert seeds_needed(prior, 0.1) is None
    assert seeds_needed(prior, 100.0) == 6
    assert seeds_needed(Prior(0.0), 1.0) == 6
    assert seeds_needed(Prior(0.5, 1.0), 2.0, beyond=True) is None
    assert seeds_needed(Prior(0.5, 0.5), 2.0, beyond=True) >= seeds_needed(Prior(0.5, 0.5), 2.0)


def test_the_sentence_before_a_study():
    assert in_words(Prior(1.5), 8, 1, "points of R@5").startswith(
        "with 8 seeds and this split you can detect 1.8 points"
    )
    assert in_words(Prior(1.5), 8, 1, "points of R@5").endswith(
        f"; {seeds_needed(Prior(1.5), 1)} seeds would be needed for 1"
    )
    assert in_words(Prior(1.5), 8, 2, "points").endswith("1.8 points")
    assert "no test is possible" in in_words(Prior(1.5), 4, 1, "points")
    assert "more than 64 seeds" in in_words(Prior(15), 8, 1, "points")


def test_a_prior_of_several_differences():
    found = prior_from([Components(1.0, 4.0, 8, 100), Components(7.0, 0.0, 8, 100)])
    assert (found.seed_deviation, found.item_error) == (pytest.approx(2), pytest.approx(2**0.5))


def test_impossible_numbers_are_refused():
    with pytest.raises(ArgumentError, match="seed_deviation: -1"):
        Prior(-1)
    with pytest.raises(ArgumentError, match="contrasts: 0"):
        forecast(Prior(1), 8, 0)
    with pytest.raises(ArgumentError, match="effect: 0"):
        seeds_needed(Prior(1), 0)
    with pytest.raises(ArgumentError, match="power: 1"):
        forecast(Prior(1), 8, power=1)
    with pytest.raises(ArgumentError, match="at least one"):
        prior_from([])
