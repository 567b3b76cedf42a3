"""Draws: as often as the distribution says, from the tokens that transformers would leave, and keyed."""

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mmlm.evaluation.generation.sampling import Sampling


def logits(rows: int = 30, vocabulary: int = 20) -> torch.Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(1))


def chi_squared_p(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """The probability that counts lie at least as far from what is expected (Pearson's test)."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({}, []),
        ({"top_k": 1}, [TopKLogitsWarper(1)]),
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_k": 100}, []),
        ({"top_p": 0.5}, [TopPLogitsWarper(0.5)]),
        ({"top_p": 0.95}, [TopPLogitsWarper(0.95)]),
        ({"top_p": 1.0}, []),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"top_k": 8, "top_p": 0.9, "min_p": 0.1},
            [TopKLogitsWarper(8), TopPLogitsWarper(0.9), MinPLogitsWarper(0.1)],
        ),
    ],
)
def test_the_distribution_is_that_of_transformers(temperature, settings, warpers):
    scores = logits().double()
    expected = scores
    for warper in (TemperatureLogitsWarper(temperature), *warpers):
        expected = warper(None, expected)
    found = Sampling(0, temperature, **settings).distribution(scores.log_softmax(dim=1))
    torch.testing.assert_close(found, expected.softmax(dim=1))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_p": 0.8}, {"top_k": 4}])
def test_tokens_are_drawn_as_often_as_the_softmax_says(settings):
    """Chi-squared: over 20,000 images at one step, and over 20,000 samples of one image."""
    scores, count = logits(1, 12), 20_000
    sampling = Sampling(3, **settings)
    shares = sampling.distribution(scores)[0]
    possible = shares > 0
    of_images = sampling.draw(scores.expand(count, -1), torch.arange(count), 4, 1)
    of_samples = sampling.draw(scores.expand(count, -1), torch.tensor([17]), 4, count)
    for drawn in (of_images, of_samples):
        counts = torch.bincount(drawn, minlength=12)
        assert counts[~possible].sum() == 0
        assert chi_squared_p(counts[possible], count * shares[possible]) > 0.01
    assert not torch.equal(of_images, sampling.draw(scores.expand(count, -1), torch.arange(count), 5, 1))


def test_a_draw_is_that_of_its_image_and_its_number():
    scores, keys = logits(6).repeat_interleave(4, dim=0), torch.tensor([5, -3, 9, 2**62, 0, 7])
    drawn = Sampling(0).draw(scores, keys, 2, 4).view(6, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = Sampling(0).draw(scores.view(6, 4, -1)[order].flatten(0, 1), keys[order], 2, 4).view(6, 4)
    assert torch.equal(again, drawn[order])
    fewer = Sampling(0).draw(scores.view(6, 4, -1)[:, :2].flatten(0, 1), keys, 2, 2).view(6, 2)
    assert torch.equal(fewer, drawn[:, :2])
    assert not torch.equal(Sampling(1).draw(scores, keys, 2, 4).view(6, 4), drawn)


def test_what_is_impossible_is_never_drawn():
    """Not at the ends of the vocabulary either, where rounding could lead."""
    scores = torch.full((5000, 7), -torch.inf)
    scores[:, [2, 4]] = 0.0
    assert set(Sampling(0).draw(scores, torch.arange(5000), 1, 1).tolist()) == {2, 4}
