"""Decoupled contrastive learning against plain loops, against InfoNCE, in tiles, and without negatives."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.objectives.decoupled import LOWEST, DecoupledInfoNCE, summaries
from mmlm.objectives.kernels.tiled import cross_entropies
from mmlm.objectives.shared.keys import Keys

KEYS = Keys(
    image_concept=torch.tensor([1, 2, 1, 3, 4]),
    caption_concept=torch.tensor([1, 1, 2, 1, 3, 9, 2]),
    caption_key=torch.tensor([10, 11, 12, 13, 11, 15, 16]),
    image_index=torch.tensor([0, 0, 1, 2, 3, TEXT_ONLY, 1]),
)
"""Image 4 has no caption, caption 5 no image; images 0 and 2 share a concept; captions 1 and 4 share their text."""


def embeddings(num_images: int = 5, num_captions: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (num_images, num_captions))
    return F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=1).requires_grad_()


def is_positive(image: int, caption: int, positives: str) -> bool:
    own = [c for c in range(7) if KEYS.image_index[c] == image]
    same_text = any(KEYS.caption_key[c] == KEYS.caption_key[caption] for c in own)
    same_concept = bool(KEYS.image_concept[image] == KEYS.caption_concept[caption])
    return {"own": caption in own, "text": same_text, "concept": same_text or same_concept}[positives]


def plain(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, positives: str) -> torch.Tensor:
    images, captions = [0, 1, 2, 3], [0, 1, 2, 3, 4, 6]

    def of(pairs: list[tuple[int, int]]) -> torch.Tensor:
        """The loss of one anchor with all of its pairs."""
        true = [scale * image[i].dot(text[c]) for i, c in pairs if is_positive(i, c, positives)]
        wrong = [(scale * image[i].dot(text[c])).exp() for i, c in pairs if not is_positive(i, c, positives)]
        return torch.stack(wrong).sum().log() - torch.stack(true).mean()

    of_images = torch.stack([of([(i, c) for c in captions]) for i in images]).mean()
    of_captions = torch.stack([of([(i, c) for i in images]) for c in captions]).mean()
    return (of_images + of_captions) / 2


@pytest.mark.parametrize("positives", ["own", "text", "concept"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_loss_and_gradients_are_those_of_plain_loops(temperature, positives):
    image, text = embeddings()
    objective = DecoupledInfoNCE(temperature, positives=positives).double()
    loss = objective.compare(image, text, KEYS)
    expected = plain(image, text, objective.logit_scale.exp(), positives)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    inputs = (image, text, objective.logit_scale)
    found = torch.autograd.grad(loss.total, inputs)
    for one, other in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_softplus_of_the_loss_is_info_nce_where_an_anchor_has_one_positive():
    """-log(exp(p) / (exp(p) + sum_n exp(n))) = log(1 + exp(log sum_n exp(n) - p))."""
    image, text = embeddings(4, 4)
    positive, scale = torch.eye(4, dtype=torch.bool), torch.tensor(3.0, dtype=torch.float64)
    rows, columns, correct = summaries(image * scale, text, lambda i, j: positive[i, j])
    *info_nce, expected = cross_entropies(image, text, scale, lambda i, j: positive[i, j])
    for (negatives, positives, number), loss in zip((rows, columns), info_nce, strict=True):
        torch.testing.assert_close(F.softplus(negatives - positives), loss)
        assert number.tolist() == [1, 1, 1, 1]
    assert torch.equal(correct, expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_tiles_of_any_size_have_the_summaries_of_the_whole(size):
    image, text = embeddings(5, 8)
    # Row 0 and column 3 have no negative, row 2 and column 5 no positive.
    positive = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)) < 0.4
    positive[2], positive[:, 5] = False, False
    positive[0], positive[:, 3] = True, True

    def results(size: int) -> tuple[torch.Tensor, ...]:
        *found, best = summaries(image, text, lambda i, j: positive[i, j], size)
        total = sum((summary / (summary.detach().abs() + 1)).sin().sum() for summary in found)
        return *found, best, *torch.autograd.grad(total, (image, text))

    whole = results(100)
    for found, expected in zip(results(size), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    rows, columns, best, *_ = whole
    assert (rows[0] == LOWEST).tolist() == [True, False, False, False, False]
    assert (columns[0] == LOWEST).nonzero().tolist() == [[3]]
    assert best[:3:2].tolist() == [True, False]


def test_no_gradient_leads_from_the_positives_to_the_denominator():
    """The gradient of a positive's similarity is -1, however far it is ahead; that of InfoNCE would vanish."""
    corners = torch.eye(3, 6).requires_grad_()
    keys = Keys(*(torch.arange(3) for _ in range(4)))
    image, text = corners, torch.eye(3, 6)
    loss = DecoupledInfoNCE(0.01, learned_temperature=False).compare(image, text, keys)
    (gradient,) = torch.autograd.grad(loss.total, image)
    # Both directions are means over 3 anchors, and the scale is 100.
    torch.testing.assert_close(gradient.diagonal(), torch.full((3,), -100.0 / 3))
    assert loss.total.item() == pytest.approx(torch.tensor(2.0).log().item() - 100, rel=1e-5)
    assert loss.figures["accuracy"].value.item() == 1


def test_anchors_without_a_negative_are_left_out_of_the_means():
    """Image 0 has the texts of both captions, so that only image 1 and caption 0 have a negative."""
    image, text = embeddings(2, 3)
    concepts, texts = torch.tensor([1, 1, 2]), torch.tensor([10, 11, 11])
    keys = Keys(torch.tensor([1, 2]), concepts, texts, torch.tensor([0, 0, 1]))
    loss = DecoupledInfoNCE(0.5).double().compare(image, text, keys)
    s = 2 * image @ text.T
    of_image = s[1, 0] - (s[1, 1] + s[1, 2]) / 2
    of_caption = s[1, 0] - s[0, 0]
    torch.testing.assert_close(loss.total, (of_image + of_caption) / 2)
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(loss.total, (image, text)))


@pytest.mark.parametrize("count", [0, 1])
def test_without_any_negative_the_loss_is_zero_and_has_a_gradient_path(count):
    image, text = (torch.ones(count, 3, requires_grad=True) for _ in range(2))
    keys = Keys(*(torch.zeros(count, dtype=torch.int64) for _ in range(4)))
    loss = DecoupledInfoNCE().compare(image, text, keys)
    loss.total.backward()
    assert loss.total.item() == 0
    for gradient in (image.grad, text.grad):
        assert gradient is not None
        assert not gradient.any()


def test_a_temperature_out_of_range():
    with pytest.raises(UserError, match=r"^temperature: 2\.0 must lie in \[1 / max_scale, 1\]"):
        DecoupledInfoNCE(2.0)
