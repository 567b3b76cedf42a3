"""Which images and captions belong together, against the definition in loops."""

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY
from mmlm.evaluation.pairs import merge_equal_captions, positive_pairs


def integers(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("seed", range(5))
def test_positive_pairs_follow_their_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    image_concept = torch.randint(4, (9,), generator=generator)
    image_index = torch.randint(-1, 9, (14,), generator=generator)
    # Some captions are of another concept than their image, and texts repeat within and across concepts.
    caption_concept = torch.randint(6, (14,), generator=generator)
    caption_key = torch.randint(10, (14,), generator=generator)
    expected = []
    for image in range(9):
        own_texts = {
            int(caption_key[c])
            for c in range(14)
            if caption_concept[c] == image_concept[image] or image_index[c] == image
        }
        expected += [[image, c] for c in range(14) if int(caption_key[c]) in own_texts]
    assert positive_pairs(image_concept, caption_concept, caption_key, image_index).tolist() == expected


def test_positive_pairs_of_several_captions_several_images_and_text_only():
    pairs = positive_pairs(
        image_concept=integers(10, 10, 20),
        caption_concept=integers(10, 10, 20, 30, 40),
        caption_key=integers(1, 2, 3, 3, 4),  # the text-only caption 3 reads as caption 2 does
        image_index=integers(0, 1, 2, TEXT_ONLY, TEXT_ONLY),
    )
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3]]


def test_positive_pairs_of_no_captions():
    none = integers()
    assert positive_pairs(integers(1, 2), none, none, none).shape == (0, 2)


def test_positive_pairs_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="hold 2, 1, 2 captions"):
        positive_pairs(integers(1), integers(1, 1), integers(1), integers(0, 0))
    with pytest.raises(ValueError, match="image_index spans 0 to 1: there are 1 images"):
        positive_pairs(integers(1), integers(1, 1), integers(1, 1), integers(0, 1))
    with pytest.raises(ValueError, match="image_index spans -2 to 0"):
        positive_pairs(integers(1), integers(1, 1), integers(1, 1), integers(0, -2))


def test_merging_equal_captions_keeps_the_first_of_each_and_moves_the_pairs():
    kept, pairs = merge_equal_captions(integers([0, 0], [0, 2], [1, 1], [1, 4], [2, 3]), integers(7, 3, 7, 9, 3))
    assert kept.tolist() == [0, 1, 3]
    assert pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
