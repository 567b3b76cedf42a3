"""A cell that is better on these images alone is not better on images at large."""

import numpy as np

from mmlm.statistics.beyond import beyond_test
from mmlm.statistics.clusters import by_cluster
from mmlm.statistics.sign_flips import sign_flip_test


def contrasts(difference, recipe, seed=0, clusters=100, seeds=8, count=3):
    random = np.random.default_rng(seed)
    return [
        by_cluster(
            difference
            + recipe * random.normal(size=clusters)
            + 0.01 * random.normal(size=(seeds, 1))
            + 0.1 * random.normal(size=(seeds, clusters)),
            np.arange(clusters),
        )
        for _ in range(count)
    ]


def test_what_few_items_decide_is_found_on_them_alone():
    found = 0
    for seed in range(20):
        paired = contrasts(0.0, recipe=1.0, seed=seed, count=1)
        over_seeds = sign_flip_test(paired[0].means[:, None])
        found += over_seeds.p[0] <= 0.05
        assert beyond_test(paired, over_seeds).p[0] >= over_seeds.p[0]
    assert found >= 15  # each of these splits favours one of the two
    assert sum(beyond_test(contrasts(0.0, 1.0, seed, count=1)).p[0] <= 0.05 for seed in range(20)) <= 4


def test_where_items_agree_it_is_the_test_over_seeds():
    paired = contrasts(0.05, recipe=0.0)
    over_seeds, beyond = sign_flip_test(np.stack([one.means for one in paired], axis=1)), beyond_test(paired)
    assert np.abs(beyond.p - over_seeds.p).max() < 0.05
    assert (beyond.adjusted >= over_seeds.adjusted).all()


def test_a_difference_on_all_items_is_found():
    assert (beyond_test(contrasts(1.0, recipe=0.5)).adjusted <= 0.05).all()
