"""Macro precision and F1 against scikit-learn; ties; intervals against draws of the images."""

import pytest
import torch
from sklearn.metrics import f1_score, precision_score

from mmlm.evaluation.macro_scores import Given, given_classes, macro_scores


def whole(classes: torch.Tensor) -> Given:
    return Given(torch.arange(len(classes)), classes, torch.ones(len(classes)).double())


def drawn(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of classes 0 to 4, and guesses out of 0 to 5 that are right in two of three cases or so."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (images,), generator=generator) ** 2 // 4
    wrong = torch.randint(6, (images,), generator=generator)
    return labels, torch.where(torch.rand(images, generator=generator) < 0.6, labels, wrong)


def test_against_scikit_learn():
    labels, guesses = drawn(300)
    precision, f1 = macro_scores(whole(guesses), labels, 6)
    plain = {"labels": sorted(set(labels.tolist())), "average": "macro", "zero_division": 0}
    assert precision.value == pytest.approx(precision_score(labels, guesses, **plain), abs=1e-12)
    assert f1.value == pytest.approx(f1_score(labels, guesses, **plain), abs=1e-12)
    nobody, _ = macro_scores(whole(torch.full((300,), 5)), labels, 6)
    assert nobody.value == 0


def test_intervals_are_as_wide_as_draws_of_the_images_say():
    labels, guesses = drawn(600)
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randint(600, (600,), generator=generator) for _ in range(300)]
    for place, found in enumerate(macro_scores(whole(guesses), labels, 6)):
        again = torch.tensor([macro_scores(whole(guesses[rows]), labels[rows], 6)[place].value for rows in draws])
        assert found.high - found.low == pytest.approx(2 * 1.96 * again.std().item(), rel=0.15)


def test_a_model_that_embeds_everything_alike_reaches_chance():
    images, classes = torch.ones(8, 4) / 2, torch.ones(4, 4) / 2
    for found in macro_scores(given_classes(images, classes), torch.tensor([0, 0, 0, 0, 1, 1, 2, 3]), 4):
        assert found.value == pytest.approx(found.chance)


def test_nothing_wrong_is_still_an_interval():
    precision, f1 = macro_scores(whole(torch.arange(4)), torch.arange(4), 4)
    assert (precision.value, f1.value) == (1, 1)
    assert precision.low < 0.6
