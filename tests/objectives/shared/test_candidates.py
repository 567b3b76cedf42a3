"""Who takes part, and who is whose positive under each rule, against loops over the definitions."""

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.objectives.shared.candidates import Candidates
from mmlm.objectives.shared.keys import Keys, positives

ALL_AT_ONCE = {
    "image_index": (3, 0, 0, TEXT_ONLY, 1, 4, 1),
    "num_images": 6,
    "image_concept": (5, 6, 7, 5, 8, 9),
    "caption_key": (1, 2, 3, 3, 4, 2, 5),
}


def is_positive(batch: Batch, image: int, caption: int, rule: str) -> bool:
    """One pair that takes part."""
    own = [c for c in range(len(batch.tokens)) if batch.image_index[c] == image]
    if rule == "own":
        return caption in own
    same_text = any(batch.caption_key[c] == batch.caption_key[caption] for c in own)
    return bool(same_text or (rule == "concept" and batch.image_concept[image] == batch.caption_concept[caption]))


@pytest.mark.parametrize("rule", ["concept", "text", "own"])
def test_rules_are_their_definitions(make_batch, rule):
    batch = make_batch(**ALL_AT_ONCE)
    found = Candidates.of(Keys.of(batch), rule)
    assert found.images.tolist() == [True, True, False, True, True, False]
    assert found.captions.tolist() == [True, True, True, False, True, True, True]
    assert found.own == slice(0, 6)
    images, captions = (0, 1, 3, 4), (0, 1, 2, 4, 5, 6)
    expected = torch.tensor([[is_positive(batch, b, c, rule) for c in captions] for b in images])
    assert torch.equal(found.positive(slice(0, 4), slice(0, 6)), expected)
    assert torch.equal(found.positive(slice(1, 3), slice(2, 5)), expected[1:3, 2:5])
    assert expected.any(dim=0).all()
    assert expected.any(dim=1).all()


def test_concepts_and_texts_are_the_whole_matrix_of_keys(make_batch):
    batch = make_batch(**ALL_AT_ONCE)
    keys = Keys.of(batch)
    found = Candidates.of(keys, "concept")
    everything = slice(None)
    expected = positives(keys, keys)[found.images][:, found.captions]
    assert torch.equal(found.positive(everything, everything), expected)


@pytest.mark.parametrize("rule", ["concept", "text", "own"])
@pytest.mark.parametrize(
    "case",
    [
        {"image_index": (TEXT_ONLY,), "num_images": 2},
        {"image_index": (TEXT_ONLY,), "num_images": 0},
        {"image_index": (), "num_images": 2},
    ],
)
def test_nobody_may_take_part(make_batch, rule, case):
    found = Candidates.of(Keys.of(make_batch(**case)), rule)
    assert not found.images.any()
    assert not found.captions.any()
    assert found.positive(slice(None), slice(None)).shape == (0, 0)
