"""The image-use gap: which image stands in, and the interval over concepts."""

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.evaluation.image_use import ImageUseGap, image_use_gap, shuffled_images


def random_concepts(seed, images=60, concepts=12):
    return torch.randint(concepts, (images,), generator=torch.Generator().manual_seed(seed)) * 1_000_003 - 7


@pytest.mark.parametrize("seed", range(8))
def test_the_other_image_is_never_of_the_same_concept_and_each_is_used_once(seed):
    concept = random_concepts(seed)
    other = shuffled_images(concept, seed)
    assert not (concept[other] == concept).any()
    assert torch.equal(other.sort().values, torch.arange(60))


@pytest.mark.parametrize("concept", [[1, 2], [1, 1, 2, 2], [1, 2, 1, 3], [5, 5, 5, 1, 2, 3], list(range(7))])
def test_the_smallest_and_tightest_sets_can_be_shuffled(concept):
    concept = torch.tensor(concept)
    for seed in range(20):
        other = shuffled_images(concept, seed)
        assert not (concept[other] == concept).any()
        assert torch.equal(other.sort().values, torch.arange(len(concept)))


def test_the_shuffle_depends_on_the_seed_only():
    concept = random_concepts(0)
    state = torch.get_rng_state()
    assert torch.equal(shuffled_images(concept, 3), shuffled_images(concept, 3))
    assert not torch.equal(shuffled_images(concept, 3), shuffled_images(concept, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_of_another_concept_stands_in_about_equally_often():
    concept = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    count = torch.zeros(8, 8)
    for seed in range(3000):
        count[torch.arange(8), shuffled_images(concept, seed)] += 1
    share = count[concept[:, None] != concept[None, :]] / 3000
    torch.testing.assert_close(share, torch.full_like(share, 1 / 6), rtol=0, atol=0.03)


@pytest.mark.parametrize("concept", [[], [1], [1, 1], [1, 1, 2], [4, 4, 4, 1, 2]])
def test_a_concept_with_more_than_half_of_the_images_is_refused(concept):
    with pytest.raises(UserError, match=rf"of {len(concept)} images: .* no concept may have more than half"):
        shuffled_images(torch.tensor(concept, dtype=torch.int64), 0)


def test_a_captioner_that_ignores_its_image_shows_zero():
    loss = torch.rand(50)
    assert image_use_gap(loss, loss, torch.arange(50)) == ImageUseGap(0.0, 0.0, 0.0)


def test_a_constant_gap_has_no_width():
    loss = torch.rand(50, dtype=torch.float64)
    gap = image_use_gap(loss, loss + 0.25, torch.arange(50) // 3)
    assert dict(gap.items()) == pytest.approx({"mean": 0.25, "low": 0.25, "high": 0.25}, abs=1e-12)


def test_the_mean_is_over_captions_and_the_bounds_are_around_it():
    generator = torch.Generator().manual_seed(0)
    true, shuffled = torch.rand(200, generator=generator), 0.3 + torch.rand(200, generator=generator)
    gap = image_use_gap(true, shuffled, random_concepts(1, images=200, concepts=40))
    assert gap.mean == pytest.approx((shuffled.double() - true.double()).mean().item(), abs=1e-12)
    assert 0 < gap.low < gap.mean < gap.high


def test_the_interval_is_that_of_a_plain_bootstrap_over_concepts():
    generator = torch.Generator().manual_seed(2)
    concept = random_concepts(2, images=90, concepts=15)
    gap = torch.randn(90, generator=generator, dtype=torch.float64)
    result = image_use_gap(torch.zeros(90), gap, concept, seed=11, resamples=300, confidence=0.8)
    members = [gap[concept == key] for key in concept.unique()]
    draws = torch.Generator().manual_seed(11)
    means = torch.stack(
        [
            torch.cat([members[i] for i in torch.randint(len(members), (len(members),), generator=draws)]).mean()
            for _ in range(300)
        ]
    )
    assert result.low == pytest.approx(means.quantile(0.1).item(), abs=1e-9)
    assert result.high == pytest.approx(means.quantile(0.9).item(), abs=1e-9)


def test_captions_of_one_concept_are_not_independent():
    # 20 concepts with 25 identical captions each carry the information of 20 captions, not of 500.
    per_concept = torch.randn(20, generator=torch.Generator().manual_seed(4))
    gap = per_concept.repeat_interleave(25)
    clustered = image_use_gap(torch.zeros(500), gap, torch.arange(20).repeat_interleave(25))
    single = image_use_gap(torch.zeros(20), per_concept, torch.arange(20))
    naive = image_use_gap(torch.zeros(500), gap, torch.arange(500))
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), abs=1e-9)
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(5)
    covered = 0
    for seed in range(200):
        centre = 1.0 + torch.randn(40, generator=generator)
        gap = centre.repeat_interleave(3) + 0.1 * torch.randn(120, generator=generator)
        result = image_use_gap(torch.zeros(120), gap, torch.arange(40).repeat_interleave(3), seed, resamples=300)
        covered += result.low <= 1.0 <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_depends_on_its_seed_and_on_nothing_else():
    true, shuffled, concept = torch.rand(30), torch.rand(30), torch.arange(30) // 2
    state = torch.get_rng_state()
    first = image_use_gap(true, shuffled, concept, seed=1)
    assert image_use_gap(true, shuffled, concept, seed=1) == first
    assert image_use_gap(true, shuffled, concept, seed=2) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_losses_with_gradients_are_fine():
    loss = torch.rand(4, requires_grad=True)
    assert image_use_gap(loss, loss * 2, torch.arange(4)).mean > 0


@pytest.mark.parametrize(
    ("true", "shuffled", "concept", "settings", "message"),
    [
        (torch.zeros(3), torch.zeros(2), torch.arange(3), {}, r"shapes \(3,\), \(2,\), \(3,\)"),
        (torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1), {}, "one value a caption"),
        (torch.zeros(3), torch.tensor([0, torch.inf, 0]), torch.arange(3), {}, "first that of caption 1"),
        (torch.tensor([torch.nan, 0, 0]), torch.zeros(3), torch.arange(3), {}, "first that of caption 0"),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3), {}, "1 concept among 3 captions"),
        (torch.zeros(0), torch.zeros(0), torch.zeros(0), {}, "0 concept among 0 captions"),
        (torch.zeros(3), torch.zeros(3), torch.arange(3), {"resamples": 0}, "resamples 0"),
        (torch.zeros(3), torch.zeros(3), torch.arange(3), {"confidence": 1.0}, "confidence 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(true, shuffled, concept, settings, message):
    with pytest.raises(ValueError, match=message):
        image_use_gap(true, shuffled, concept, **settings)
