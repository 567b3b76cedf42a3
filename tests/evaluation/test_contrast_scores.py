"""Which caption is preferred, and Winoground's three scores, against plain comparisons; ties are at chance."""

import pytest
import torch

from mmlm.evaluation.contrast_scores import GROUP_CHANCE, group_scores, preferred


def test_the_higher_score_is_preferred_and_ties_count_half():
    true = torch.tensor([1.0, 0.5, 0.5, 0.2])
    false = torch.tensor([0.5, 0.5, 0.5 + 1e-8, 0.3])
    assert preferred(true, false).tolist() == [1, 0.5, 0.5, 0]


def test_the_scores_of_groups_against_plain_comparisons():
    scores = torch.rand(300, 2, 2, generator=torch.Generator().manual_seed(0))  # [image, caption]
    own = torch.stack([scores[:, 0, 0], scores[:, 1, 1]], dim=1)
    other = torch.stack([scores[:, 0, 1], scores[:, 1, 0]], dim=1)
    found = group_scores(own, other)
    for row, s in enumerate(scores.tolist()):
        text = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        image = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        told = tuple(found[name][row].item() for name in ("text", "image", "group"))
        assert told == (text, image, text and image)
    # Random scores are at chance, to three standard errors.
    for name, chance in GROUP_CHANCE.items():
        assert found[name].mean().item() == pytest.approx(chance, abs=3 * (chance * (1 - chance) / 300) ** 0.5)


def test_a_model_that_sees_no_difference_is_at_chance():
    same = torch.full((3, 2), 0.25)
    found = group_scores(same, same + 1e-9)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx([chance] * 3) for name, chance in GROUP_CHANCE.items()
    }


def test_a_bag_of_words_is_right_for_images_half_the_time_at_most():
    """Both captions have one vector: each image is indifferent, and one image is nearer to both captions."""
    own, other = torch.tensor([[0.9, 0.4]]), torch.tensor([[0.9, 0.4]])  # (0,0), (1,1) and (0,1), (1,0)
    found = {name: values.item() for name, values in group_scores(own, other).items()}
    assert found == {"text": 0.25, "image": 0, "group": 0}
