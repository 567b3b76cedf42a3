"""Power laws of loss against compute: exact ones are found again, and bands hold the truth."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.scaling import Ladder, fit_ladder, fit_laws, predict_largest

COMPUTE = np.geomspace(1e12, 1e14, 5)


def law(compute, floor=1.0, scale=0.8, exponent=0.2):
    return floor + scale * (np.asarray(compute) / 1e13) ** -exponent


def ladder(seeds, random, noise=0.01, **parts):
    return Ladder(COMPUTE, law(COMPUTE, **parts) * (1 + noise * random.normal(size=(seeds, 5))))


def test_exact_laws_are_found_again():
    rows = [(1.0, 0.8, 0.2), (0.0, 2.0, 0.05), (0.3, 1.0, 0.9)]
    found = fit_laws(COMPUTE, np.stack([law(COMPUTE, *row) for row in rows]))
    for number, row in enumerate(rows):
        assert found.losses(COMPUTE)[number] == pytest.approx(law(COMPUTE, *row), rel=1e-5)
        assert found.exponent[number] == pytest.approx(row[2], abs=2e-3)
    assert found.floor == pytest.approx([1.0, 0.0, 0.3], abs=0.02)


def test_no_law_rises_with_compute_and_no_floor_is_negative():
    found = fit_laws(COMPUTE, np.stack([[1.0, 1.1, 1.2, 1.3, 1.4], [5.0, 4.0, 3.0, 2.0, 1.0]]))
    assert (np.diff(found.losses(np.geomspace(1e12, 1e16, 50)), axis=1) <= 1e-12).all()
    assert (found.floor >= 0).all()


def test_bands_hold_the_law_and_the_largest_size_lies_where_it_is_predicted():
    random = np.random.default_rng(0)
    target = np.array([3e14])
    inside = held = 0
    for number in range(60):
        drawn = ladder(6, random)
        inside += predict_largest(drawn, 120, number).inside
        _, low, high = fit_ladder(drawn, 120, number).band(target)
        held += low[0] <= law(target)[0] <= high[0]
    assert inside >= 51
    assert held >= 51


def test_a_recipe_that_leaves_its_law_is_found_out():
    drawn = ladder(6, np.random.default_rng(1), noise=0.002)
    drawn.losses[:, -1] *= 1.2
    found = predict_largest(drawn, 200)
    assert not found.inside
    assert found.observed > found.interval.high
    assert (found.compute, found.predicted) == (COMPUTE[-1], pytest.approx(law(COMPUTE[-1]), rel=0.02))


def test_one_seed_has_its_noise_from_what_the_law_leaves():
    band = fit_ladder(ladder(1, np.random.default_rng(2)), 200).band(COMPUTE)
    assert (band[1] < band[0]).all()
    assert (band[0] < band[2]).all()


@pytest.mark.parametrize(
    ("compute", "losses", "message"),
    [
        (COMPUTE[:3], np.ones((2, 3)), "more than 3"),
        (COMPUTE, np.ones((2, 4)), "must be seeds by sizes"),
        (COMPUTE[::-1].copy(), np.ones((2, 5)), "rise from size to size"),
        (COMPUTE, np.zeros((2, 5)), "above 0"),
    ],
)
def test_impossible_ladders_are_refused(compute, losses, message):
    with pytest.raises(ArgumentError, match=message):
        Ladder(compute, losses)


def test_four_sizes_have_none_to_hold_out():
    with pytest.raises(ArgumentError, match="at least 5"):
        predict_largest(Ladder(COMPUTE[:4], np.ones((2, 4))))
