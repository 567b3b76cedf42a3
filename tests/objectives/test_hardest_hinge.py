"""VSE++'s hinge against plain loops, with several captions an image, equal concepts and texts; and its collapse."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.objectives.hardest_hinge import HardestHinge
from mmlm.objectives.shared.keys import Keys

KEYS = Keys(
    image_concept=torch.tensor([1, 2, 1, 3, 4]),
    caption_concept=torch.tensor([1, 1, 2, 1, 3, 9, 4]),
    caption_key=torch.tensor([10, 11, 12, 13, 11, 15, 16]),
    image_index=torch.tensor([0, 0, 1, 2, 3, TEXT_ONLY, 1]),
)
"""Image 4 has no caption, caption 5 no image; images 0 and 2 share a concept; captions 1 and 4 share their text."""


def embeddings(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (5, 7))
    return F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=1).requires_grad_()


def is_positive(image: int, caption: int, positives: str) -> bool:
    own = [c for c in range(7) if KEYS.image_index[c] == image]
    same_text = any(KEYS.caption_key[c] == KEYS.caption_key[caption] for c in own)
    same_concept = bool(KEYS.image_concept[image] == KEYS.caption_concept[caption])
    return {"own": caption in own, "text": same_text, "concept": same_text or same_concept}[positives]


def plain(image: torch.Tensor, text: torch.Tensor, margin: float, positives: str) -> torch.Tensor:
    images = [i for i in range(5) if i in KEYS.image_index]
    captions = [c for c in range(7) if KEYS.image_index[c] != TEXT_ONLY]
    losses = []
    for c in captions:
        i = int(KEYS.image_index[c])
        true = image[i] @ text[c]
        wrong_captions = [image[i] @ text[d] for d in captions if not is_positive(i, d, positives)]
        wrong_images = [image[j] @ text[c] for j in images if not is_positive(j, c, positives)]
        zero = true.new_zeros(())
        of_captions = torch.maximum(zero, margin + max(wrong_captions) - true) if wrong_captions else zero
        of_images = torch.maximum(zero, margin + max(wrong_images) - true) if wrong_images else zero
        losses.append(of_captions + of_images)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("positives", ["own", "text", "concept"])
@pytest.mark.parametrize("margin", [0.2, 0.9])
def test_loss_and_gradients_are_those_of_plain_loops(margin, positives):
    image, text = embeddings()
    loss = HardestHinge(margin, positives).compare(image, text, KEYS)
    expected = plain(image, text, margin, positives)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss.total, (image, text))
    for one, other in zip(found, torch.autograd.grad(expected, (image, text)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_embeddings_that_are_all_alike_stand_at_twice_the_margin_without_a_gap():
    image, text = (F.normalize(torch.ones(n, 6), dim=1) for n in (5, 7))
    loss = HardestHinge(0.2).compare(image, text, KEYS)
    assert loss.total.item() == pytest.approx(0.4)
    assert loss.figures["gap"].value.item() == pytest.approx(0, abs=1e-6)
    assert loss.figures["accuracy"].value.item() == 0


def test_pairs_far_ahead_of_all_others_have_no_loss():
    corners = torch.eye(6)
    keys = Keys(torch.arange(3), torch.arange(3), torch.arange(3), torch.arange(3))
    loss = HardestHinge(0.2).compare(corners[:3], corners[:3], keys)
    assert (loss.total.item(), loss.figures["accuracy"].value.item()) == (0, 1)
    assert loss.figures["gap"].value.item() == 1


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_negative_the_loss_is_zero_and_has_a_gradient_path(count):
    image, text = (torch.ones(count, 3, requires_grad=True) for _ in range(2))
    keys = Keys(*(torch.zeros(count, dtype=torch.int64) for _ in range(4)))
    loss = HardestHinge().compare(image, text, keys)
    loss.total.backward()
    assert loss.total.item() == 0
    assert image.grad is not None
    assert text.grad is not None


def test_a_margin_out_of_range():
    with pytest.raises(UserError, match=r"^margin: 2\.5 must lie in \(0, 2\)"):
        HardestHinge(2.5)
