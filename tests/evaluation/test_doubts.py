"""What is made of losses and margins of captions: right answers by hand."""

import numpy as np
import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.data.look import Look
from mmlm.evaluation.caption_fit import CaptionFit, gains, margins
from mmlm.evaluation.doubts import beyond_length, deviations, doubts_of
from mmlm.evaluation.perplexity import caption_nats


def picture(number: int, *captions: str) -> Example:
    image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return Example(f"{number}", image, tuple(Caption(text) for text in captions))


def test_a_margin_is_to_the_best_text_of_another(make_split):
    split = make_split([picture(0, "a dog", "a hound"), picture(1, "a cat"), picture(2, "a dog")])
    image, text = split.image_embedding, torch.cat([item.text_embedding for item in split.batches])
    similar = (image.double() @ text.double().T).tolist()
    # Texts of the split: a dog, a hound, a cat, a dog. An image's own are those that read as one of its captions.
    wrong = {0: [2], 1: [0, 1, 3], 2: [1, 2]}
    expected = [similar[i][c] - max(similar[i][w] for w in wrong[i]) for c, i in enumerate([0, 0, 1, 2])]
    assert margins(split).tolist() == pytest.approx(expected, abs=1e-12)
    assert margins(make_split([picture(0, "a dog")])).isnan().all()


def test_a_gain_is_that_of_the_own_image_over_the_next(make_split):
    split = make_split([picture(0, "a dog"), picture(1, "a cat"), picture(2, "a bird")])
    own = caption_nats(split)
    other = caption_nats(split.with_images_of(torch.tensor([1, 2, 0])))
    assert torch.equal(gains(split, own), other - own)
    alone = make_split([picture(0, "a dog")])
    assert gains(alone, caption_nats(alone)).isnan().all()


def fit(step: int, margin: list[float], loss: list[float], looks: dict[str, Look] | None = None) -> CaptionFit:
    n = len(margin)
    ids, tokens = tuple(str(number) for number in range(n)), np.full(n, 5.0)
    shown = looks or {id: Look(id.encode(), 0, (0, 0, 0)) for id in ids}
    return CaptionFit(step, ids, ("a dog",) * n, tokens, np.array(loss), np.array(margin), shown)


def test_wrong_never_learned_and_forgotten_captions():
    usual = list(np.linspace(0.1, 0.3, 20))
    cost = list(np.linspace(4.0, 3.0, 20))  # the nearer, the likelier
    # After the usual ones: a wrong caption, one that is never nearest, one that is forgotten, one that nobody compares.
    before = fit(1, [*usual, -2.0, -0.01, 0.2, np.nan], [*cost, 20.0, 3.5, 3.5, 3.5])
    after = fit(2, [*usual, -2.0, -0.01, -0.1, np.nan], [*cost, 20.0, 3.5, 3.5, 3.5])
    found = doubts_of([before, after])
    assert (found.mislabelled, found.never, found.forgotten) == ((20,), (21,), (22,))
    assert found.mislabelled_ids == ("20",)
    assert found.doubt.argmax() == 20
    assert doubts_of([after]).forgotten == ()


def test_a_model_without_a_decoder_has_margins_only():
    found = doubts_of([fit(1, [*np.linspace(0.1, 0.3, 20), -2.0], [np.nan] * 21)])
    assert found.mislabelled == (20,)


def test_of_equal_images_the_later_ones_with_equal_captions_are_repeated():
    looks = {str(n): Look(b"same" if n in (1, 3) else bytes([n]), 0, (0, 0, 0)) for n in range(5)}
    found = doubts_of([fit(1, [0.1, 0.2, 0.3, 0.4, 0.5], [1.0] * 5, looks)])
    assert (found.same, found.repeated_ids) == ((("1", "3"),), ("3",))


def test_deviations_of_a_normal_sample_are_its_standard_scores():
    values = np.random.default_rng(0).normal(3.0, 2.0, 20_000)
    assert deviations(values) == pytest.approx((values - 3) / 2, abs=0.1)
    assert deviations(np.ones(4)).tolist() == [0.0] * 4
    # A tenth of far values moves nobody else's by more than a little.
    spoiled = np.concatenate([values, np.full(1_000, 1e6)])
    assert deviations(spoiled)[:20_000] == pytest.approx(deviations(values), abs=0.5)


def test_length_explains_what_a_line_explains():
    tokens = np.array([3.0, 5.0, 9.0])
    assert beyond_length(2 * tokens + 1, tokens) == pytest.approx(np.zeros(3), abs=1e-9)
    assert beyond_length(np.array([1.0, 3.0]), np.array([4.0, 4.0])).tolist() == [-1.0, 1.0]
