"""Intervals and levels of chance against formulas in closed form and against counting every case."""

import math
from itertools import combinations

import pytest
import torch

from mmlm.evaluation.caption_intervals import bleu_interval, with_intervals
from mmlm.evaluation.caption_scores import score_captions
from mmlm.evaluation.intervals import mean_intervals, recall_by_chance, resampled_sums, share_interval, wilson

Z = 1.959963984540054


def roots(share: float, count: float) -> list[float]:
    """Wilson's bounds by their definition: the shares p with (share - p)^2 = z^2 p (1 - p) / count."""
    a, b, c = 1 + Z**2 / count, -(2 * share + Z**2 / count), share**2
    middle, half = -b / (2 * a), math.sqrt(b**2 - 4 * a * c) / (2 * a)
    return [middle - half, middle + half]


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 10), (52, 100), (5, 5)])
def test_items_that_are_independent_have_wilsons_interval(right, count):
    values = torch.tensor([1.0] * right + [0.0] * (count - right))
    assert share_interval(values, torch.arange(count)) == pytest.approx(roots(right / count, count), abs=1e-12)


def test_a_known_interval():
    """The interval of 3 out of 10, as it stands in the literature on the score interval."""
    assert wilson(0.3, 10) == pytest.approx((0.10779, 0.60322), abs=1e-5)


def test_copies_of_an_item_tell_no_more_than_the_item():
    values, cluster = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), torch.arange(5)
    once = share_interval(values, cluster)
    assert share_interval(values.repeat(20), cluster.repeat(20)) == pytest.approx(once)
    assert share_interval(values.repeat(20), torch.arange(100)) == pytest.approx(roots(0.6, 100))
    all_right = share_interval(torch.ones(100), cluster.repeat(20))
    assert all_right == pytest.approx(roots(1.0, 5)), "where nothing varies, clusters count"


def test_the_order_of_items_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    values, cluster = torch.rand(40, generator=generator).round(), torch.randint(9, (40,), generator=generator)
    order = torch.randperm(40, generator=generator)
    assert share_interval(values[order], cluster[order]) == pytest.approx(share_interval(values, cluster))


def test_the_bootstrap_of_many_items_is_near_the_normal_interval():
    values = torch.linspace(0, 1, 400)[:, None]
    low, high = mean_intervals(values, torch.arange(400), resamples=4000)[0].tolist()
    error = values.std(unbiased=False).item() / math.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - Z * error, 0.5 + Z * error), abs=0.004)


def test_drawn_clusters_come_whole_and_as_many_as_there_are():
    cluster = torch.tensor([0, 0, 1, 2, 2, 2])
    values = torch.tensor([[1.0, 0], [1, 0], [0, 1], [10, 0], [10, 0], [10, 0]])
    drawn = resampled_sums(values, cluster, seed=0, resamples=50)
    whole = drawn[:, 0] // 30 + drawn[:, 0] % 30 // 2 + drawn[:, 1]
    assert (whole == 3).all()
    assert drawn.unique(dim=0).shape[0] > 3
    assert torch.equal(drawn, resampled_sums(values, cluster, seed=0, resamples=50))


def test_no_item_has_no_interval():
    for bad in (
        lambda: share_interval(torch.zeros(0), torch.zeros(0)),
        lambda: mean_intervals(torch.zeros(0, 1), torch.zeros(0)),
    ):
        with pytest.raises(ValueError, match="no item has no interval"):
            bad()


@pytest.mark.parametrize("cutoff", [1, 2, 5, 10])
def test_recall_by_chance_is_that_of_all_orders(cutoff):
    """Counted over every set of places that the right candidates can have."""
    expected = []
    for positives in (1, 2, 3):
        places = list(combinations(range(6), positives))
        expected.append(sum(min(chosen) < cutoff for chosen in places) / len(places))
    found = recall_by_chance(torch.tensor([1, 2, 3]), 6, cutoff)
    assert found == pytest.approx(sum(expected) / 3)


CAPTIONS = ["a red cat", "a blue dog on a mat", "a green bird", "two fish in a bowl"]


def test_captions_with_intervals_and_chance():
    truths = [["a red cat"], ["a blue dog on a mat", "a dog"], ["a yellow bird"], ["three fish in a big bowl"]]
    values = dict(with_intervals(CAPTIONS, truths, torch.arange(4)))
    plain = dict(score_captions(CAPTIONS, truths).items())
    assert {name: values[name] for name in plain} == plain
    assert values["captioned"] == 4
    assert (values["exact/low"], values["exact/high"]) == pytest.approx(tuple(roots(0.5, 4)))
    assert values["exact/chance"] == 0
    for name in ("CIDEr-D", "ROUGE-L", "BLEU-4"):
        assert values[f"{name}/low"] <= values[name] <= values[f"{name}/high"]
        assert values[f"{name}/low"] < values[f"{name}/high"]
        assert values[f"{name}/chance"] < values[name]
    alone = dict(with_intervals(CAPTIONS[:1], truths[:1], torch.zeros(1)))
    assert "exact/chance" not in alone, "there is no other image"


def test_bleu_of_equal_examples_is_certain():
    low, high = bleu_interval(CAPTIONS[1:2] * 5, [["a blue dog on a rug"]] * 5, torch.arange(5))
    whole = dict(score_captions(CAPTIONS[1:2] * 5, [["a blue dog on a rug"]] * 5).items())
    assert low == pytest.approx(high) == pytest.approx(whole["BLEU-4"])
