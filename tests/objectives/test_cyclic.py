"""CyCLIP's consistency against plain loops, with several captions an image; what it forbids and what it does not."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.objectives.cyclic import Cyclic
from mmlm.objectives.shared.keys import Keys

KEYS = Keys(
    image_concept=torch.tensor([1, 2, 1, 3, 4]),
    caption_concept=torch.tensor([1, 1, 2, 1, 3, 9, 4]),
    caption_key=torch.tensor([10, 11, 12, 13, 11, 15, 16]),
    image_index=torch.tensor([0, 0, 1, 2, 3, TEXT_ONLY, 1]),
)
"""Images 0 and 1 have two captions each, image 4 has none, and caption 5 has no image: there are six pairs."""


def one_each(count: int) -> Keys:
    return Keys(*(torch.arange(count) for _ in range(4)))


def unit(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def plain(image: torch.Tensor, text: torch.Tensor, keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(image[i], text[c]) for c, i in enumerate(keys.image_index.tolist()) if i != TEXT_ONLY]
    cross_modal = [(i @ u - j @ t) ** 2 for i, t in pairs for j, u in pairs]
    in_modal = [(i @ j - t @ u) ** 2 for i, t in pairs for j, u in pairs]
    return torch.stack(cross_modal).mean(), torch.stack(in_modal).mean()


def found(objective: Cyclic, image: torch.Tensor, text: torch.Tensor, keys: Keys) -> tuple[float, float]:
    figures = objective.compare(image, text, keys).figures
    return figures["cross_modal"].value.item(), figures["in_modal"].value.item()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_loss_and_gradients_are_those_of_plain_loops(weights):
    image, text = unit(5).requires_grad_(), unit(7, seed=1).requires_grad_()
    loss = Cyclic(*weights).compare(image, text, KEYS)
    cross_modal, in_modal = plain(image, text, KEYS)
    expected = weights[0] * cross_modal + weights[1] * in_modal
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.figures["cross_modal"].value, cross_modal.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.figures["in_modal"].value, in_modal.detach(), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(loss.total, (image, text))
    for one, other in zip(gradients, torch.autograd.grad(expected, (image, text)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_small_inconsistency_of_float32_embeddings_is_not_lost_to_rounding():
    # The sums that are subtracted are more than a hundred thousand times as large as what is left.
    image = unit(40)
    text = F.normalize(image + 1e-3 * unit(40, seed=1), dim=1)
    image, text = image.float().requires_grad_(), text.float().requires_grad_()
    loss = Cyclic().compare(image, text, one_each(40))
    wide = [embedding.detach().double().requires_grad_() for embedding in (image, text)]
    expected = sum(plain(*wide, one_each(40)), torch.zeros(()))
    assert 0 < expected < 1e-6
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(loss.total, (image, text))
    for one, other in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6 * other.abs().max().item())


def test_equal_and_mirrored_and_collapsed_embeddings_are_consistent():
    image = unit(8)
    mirrored = image * torch.tensor([-1, 1, 1, 1, 1, 1])
    collapsed = image[:1].expand(8, -1)
    for pair in ((image, image), (image, mirrored), (collapsed, collapsed)):
        assert found(Cyclic(), *pair, one_each(8)) == pytest.approx((0, 0), abs=1e-14)


def test_turned_texts_have_the_distances_of_the_images_but_are_not_interchangeable_with_them():
    # A quarter turn: I_j . T_k = -I_k . T_j, so that the first difference is twice the similarity.
    image = unit(8, width=2)
    text = torch.stack([-image[:, 1], image[:, 0]], dim=1)
    expected = 4 * (image @ text.T).square().mean().item()
    assert found(Cyclic(), image, text, one_each(8)) == pytest.approx((expected, 0), abs=1e-14)


def test_captions_of_one_image_are_asked_to_be_alike_and_equally_near():
    keys = Keys(*(torch.zeros(n, dtype=torch.int64) for n in (1, 2, 2, 2)))
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Of the four choices of two pairs, two are of different captions, whose similarity is 0.6 as is the second's image.
    assert found(Cyclic(), image, text, keys) == pytest.approx((2 * 0.4**2 / 4, 2 * 0.4**2 / 4))


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_second_pair_the_loss_is_zero_and_has_a_gradient_path(count):
    image, text = (F.normalize(torch.ones(count, 4), dim=1).requires_grad_() for _ in range(2))
    loss = Cyclic().compare(image, text, one_each(count))
    loss.total.backward()
    assert loss.total.item() == 0
    assert image.grad is not None
    assert text.grad is not None


def test_nothing_that_grows_with_the_square_of_the_batch_is_kept():
    count, width = 300, 4
    image, text = unit(count, width).requires_grad_(), unit(count, width, seed=1).requires_grad_()
    sizes = []

    def record(kept: torch.Tensor) -> torch.Tensor:
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(record, lambda kept: kept):
        Cyclic().compare(image, text, one_each(count))
    assert max(sizes) == count * width


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((-1.0, 1.0), r"^cross_modal: -1\.0 must be at least 0 and finite"),
        ((1.0, math.inf), r"^in_modal: inf must be at least 0 and finite"),
        ((math.nan, 1.0), r"^cross_modal: nan must be at least 0 and finite"),
        ((0.0, 0.0), r"^cross_modal: 0\.0 must be above 0 if in_modal is 0 too"),
    ],
)
def test_weights_out_of_range(weights, message):
    with pytest.raises(UserError, match=message):
        Cyclic(*weights)
