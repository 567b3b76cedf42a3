"""InfoNCE in float64 against loops over the definition, CLIP's formula and open_clip, with all gradients."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import StepKey
from mmlm.objectives import contrastive
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.kernels import tiled


def run(objective: InfoNCE, output: ModelOutput, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients: image, text, log scale."""
    objective = objective.double()
    loss = objective(output, batch, StepKey(), {}).total
    inputs = [output.image_embedding, output.text_embedding, objective.logit_scale]
    return loss, list(torch.autograd.grad(loss, inputs))


def are_positives(batch: Batch, image: int, caption: int) -> bool:
    """The definition, one pair at a time: same concept, or the caption's text is one of the image's own."""
    if batch.image_index[caption] == TEXT_ONLY:
        return False
    own = [c for c in range(len(batch.tokens)) if batch.image_index[c] == image]
    same_concept = batch.image_concept[image] == batch.caption_concept[caption]
    return bool(own) and bool(same_concept or any(batch.caption_key[c] == batch.caption_key[caption] for c in own))


def slow_info_nce(output: ModelOutput, batch: Batch, log_scale: Tensor, smoothing: float = 0.0) -> Tensor:
    """The class's docstring as loops over rows, candidates and positives."""
    images = [b for b in range(len(batch.images)) if (batch.image_index == b).any()]
    captions = [c for c in range(len(batch.tokens)) if batch.image_index[c] != TEXT_ONLY]
    scale = log_scale.exp()
    score = {
        (b, c): scale * (output.image_embedding[b] * output.text_embedding[c]).sum() for b in images for c in captions
    }

    def row(scores: list[Tensor], matches: list[bool]) -> Tensor:
        normaliser = torch.stack([s.exp() for s in scores]).sum().log()
        hit = [normaliser - s for s, match in zip(scores, matches, strict=True) if match]
        spread = [normaliser - s for s in scores]
        return (1 - smoothing) * sum(hit) / len(hit) + smoothing * sum(spread) / len(spread)

    by_image = [row([score[b, c] for c in captions], [are_positives(batch, b, c) for c in captions]) for b in images]
    by_text = [row([score[b, c] for b in images], [are_positives(batch, b, c) for b in images]) for c in captions]
    return (sum(by_image) / len(by_image) + sum(by_text) / len(by_text)) / 2


BATCHES = {
    "one caption an image": {"image_index": (0, 1, 2, 3), "num_images": 4},
    "permuted": {"image_index": (2, 0, 3, 1), "num_images": 4},
    "several captions": {"image_index": (0, 0, 1, 2, 2, 2), "num_images": 3},
    "equal concepts": {"image_index": (0, 1, 2, 3), "num_images": 4, "image_concept": (5, 6, 5, 5)},
    "equal texts": {"image_index": (0, 1, 2, 3), "num_images": 4, "caption_key": (7, 8, 7, 9)},
    "text reached through a second caption": {
        "image_index": (0, 0, 1, 1),
        "num_images": 2,
        "caption_key": (1, 2, 2, 3),
    },
    "text only": {"image_index": (0, TEXT_ONLY, 1, TEXT_ONLY, 2), "num_images": 3},
    "text only of an image's text and concept": {
        "image_index": (0, TEXT_ONLY, 1, TEXT_ONLY),
        "num_images": 2,
        "caption_key": (1, 1, 2, 3),
        "caption_concept": (100, 50, 101, 101),
    },
    "image without caption": {"image_index": (0, 0, 2), "num_images": 4},
    "image without caption of a concept that has some": {
        "image_index": (0, 2),
        "num_images": 3,
        "image_concept": (5, 5, 6),
    },
    "all at once": {
        "image_index": (3, 0, 0, TEXT_ONLY, 1, 4, 1),
        "num_images": 6,
        "image_concept": (5, 6, 7, 5, 8, 9),
        "caption_key": (1, 2, 3, 3, 4, 2, 5),
    },
}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("case", BATCHES.values(), ids=BATCHES.keys())
def test_equals_loops_over_the_definition_with_all_gradients(make_batch, make_output, case, smoothing):
    batch = make_batch(**case)
    output = make_output(batch)
    objective = InfoNCE(temperature=0.2, label_smoothing=smoothing)
    loss, gradients = run(objective, output, batch)
    expected = slow_info_nce(output, batch, objective.logit_scale, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    inputs = [output.image_embedding, output.text_embedding, objective.logit_scale]
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_unique_positives_give_clip_s_formula(make_batch, make_output):
    batch = make_batch((0, 1, 2, 3, 4, 5), 6)
    output = make_output(batch)
    objective = InfoNCE(temperature=0.05)
    loss, gradients = run(objective, output, batch)
    logits = objective.logit_scale.exp() * output.image_embedding @ output.text_embedding.T
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    inputs = [output.image_embedding, output.text_embedding, objective.logit_scale]
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_equals_open_clip_s_loss(make_batch, make_output):
    batch = make_batch((0, 1, 2, 3, 4), 5)
    output = make_output(batch)
    objective = InfoNCE()
    loss, gradients = run(objective, output, batch)
    inputs = [output.image_embedding, output.text_embedding, objective.logit_scale]
    expected = ClipLoss()(*inputs[:2], objective.logit_scale.exp())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_own_positives_are_clip_s_whatever_the_concepts_and_texts(make_batch, make_output):
    batch = make_batch((3, 0, 2, 1), 4, image_concept=(5, 5, 6, 6), caption_key=(1, 1, 1, 2))
    output = make_output(batch)
    objective = InfoNCE(positives="own")
    loss, gradients = run(objective, output, batch)
    inputs = [output.image_embedding, output.text_embedding, objective.logit_scale]
    expected = ClipLoss()(inputs[0][batch.image_index], inputs[1], objective.logit_scale.exp())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_equal_texts_without_concepts(make_batch, make_output):
    """As if every concept were of one image only."""
    case = {"image_index": (0, 0, 1, 2, 3), "num_images": 4, "caption_key": (1, 2, 2, 3, 4)}
    batch, apart = make_batch(**case, image_concept=(5, 6, 5, 5)), make_batch(**case)
    output = make_output(batch)
    loss, _ = run(InfoNCE(positives="text"), output, batch)
    torch.testing.assert_close(loss, run(InfoNCE(), output, apart)[0], rtol=1e-12, atol=1e-12)
    assert (loss - run(InfoNCE(), output, batch)[0]).abs() > 1e-3


@pytest.mark.parametrize("tile", [1, 2, 4])
@pytest.mark.parametrize("positives", ["concept", "own"])
def test_tiles_change_nothing(make_batch, make_output, monkeypatch, tile, positives):
    batch = make_batch(**BATCHES["all at once"])
    output = make_output(batch)
    expected, expected_gradients = run(InfoNCE(label_smoothing=0.1, positives=positives), output, batch)
    monkeypatch.setattr(contrastive, "cross_entropies", partial(tiled.cross_entropies, tile=tile))
    loss, gradients = run(InfoNCE(label_smoothing=0.1, positives=positives), output, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_label_smoothing_is_pytorch_s(make_batch, make_output):
    batch = make_batch((0, 1, 2, 3), 4)
    output = make_output(batch)
    objective = InfoNCE(temperature=0.1, label_smoothing=0.3)
    loss, _ = run(objective, output, batch)
    logits = 10 * output.image_embedding @ output.text_embedding.T
    both = [F.cross_entropy(rows, torch.arange(4), label_smoothing=0.3) for rows in (logits, logits.T)]
    torch.testing.assert_close(loss, sum(both) / 2, rtol=1e-6, atol=1e-6)


def test_the_order_of_images_and_captions_does_not_matter(make_batch, make_output, alone):
    batch = make_batch(**BATCHES["all at once"])
    output = make_output(batch)
    images, captions = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([6, 1, 3, 0, 5, 2, 4])
    index = batch.image_index[captions]
    shuffled = replace(
        batch,
        images=batch.images[images],
        image_concept=batch.image_concept[images],
        tokens=batch.tokens[captions],
        lengths=batch.lengths[captions],
        caption_concept=batch.caption_concept[captions],
        caption_key=batch.caption_key[captions],
        image_index=torch.where(index == TEXT_ONLY, index, images.argsort()[index]),
    )
    moved = replace(
        output, image_embedding=output.image_embedding[images], text_embedding=output.text_embedding[captions]
    )
    torch.testing.assert_close(alone(InfoNCE(), moved, shuffled).total, alone(InfoNCE(), output, batch).total)


def test_those_that_take_no_part_get_no_gradient_and_change_nothing(make_batch, make_output):
    batch = make_batch((0, TEXT_ONLY, 2), 3)
    output = make_output(batch)
    loss, (image, text, _) = run(InfoNCE(), output, batch)
    assert image[1].count_nonzero() == 0
    assert text[1].count_nonzero() == 0
    kept = make_batch((0, 1), 2)
    fewer = replace(
        output, image_embedding=output.image_embedding[[0, 2]], text_embedding=output.text_embedding[[0, 2]]
    )
    torch.testing.assert_close(run(InfoNCE(), fewer, kept)[0], loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        {"image_index": (TEXT_ONLY, TEXT_ONLY), "num_images": 0},
        {"image_index": (TEXT_ONLY, TEXT_ONLY), "num_images": 2},
        {"image_index": (), "num_images": 2},
    ],
    ids=["no image", "no caption of an image", "no caption"],
)
def test_a_batch_without_pairs_has_loss_zero_and_finite_gradients(make_batch, make_output, case, alone):
    batch = make_batch(**case)
    output = make_output(batch)
    loss, gradients = run(InfoNCE(label_smoothing=0.1), output, batch)
    assert loss.item() == 0
    assert all(g.count_nonzero() == 0 for g in gradients)
    assert alone(InfoNCE(), output, batch).figures["accuracy"].value.item() == 0


def test_accuracy_is_the_share_of_images_whose_best_text_is_a_positive(make_batch, alone):
    batch = make_batch((0, 1, 2, TEXT_ONLY), 4, caption_key=(1, 2, 1, 3))
    text = torch.eye(4)
    image = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0.6, 0.8], [0, 1, 0, 0]])
    figures = alone(InfoNCE(), ModelOutput(image, text), batch).figures
    # Image 0 finds its text's twin, image 1 is wrong, image 2 must not find the text-only caption, image 3 has none.
    assert figures["accuracy"].value.item() == pytest.approx(2 / 3)
    assert figures["temperature"].value.item() == pytest.approx(0.07)


@pytest.mark.parametrize(("start", "kept"), [(9.0, math.log(50)), (-1.0, 0.0)])
def test_scale_is_kept_within_its_bounds_and_comes_back(make_batch, make_output, start, kept):
    """Beyond the bound the loss is that of the bound, and the next step starts from there with a gradient."""
    batch = make_batch((0, 1, 2), 3)
    output = make_output(batch)
    objective = InfoNCE(max_scale=50.0).double()
    at_bound = InfoNCE(max_scale=50.0).double()
    with torch.no_grad():
        objective.logit_scale.fill_(start)
        at_bound.logit_scale.fill_(kept)
    loss, gradients = run(objective, output, batch)
    expected, at_bound_gradients = run(at_bound, output, batch)
    torch.testing.assert_close(loss, expected)
    assert objective.logit_scale.item() == pytest.approx(kept)
    assert gradients[2].abs() > 0
    torch.testing.assert_close(gradients[2], at_bound_gradients[2])


def test_two_forwards_before_one_backward_are_fine(make_batch, make_output, alone):
    batch = make_batch((0, 1, 2), 3)
    output = make_output(batch)
    objective = InfoNCE().double()
    (alone(objective, output, batch).total + alone(objective, output, batch).total).backward()
    doubled = objective.logit_scale.grad.clone()
    torch.testing.assert_close(doubled, 2 * run(objective, output, batch)[1][2])


def test_a_fixed_temperature_is_not_trained(make_batch, make_output):
    objective = InfoNCE(temperature=0.5, learned_temperature=False)
    assert [p for p in objective.parameters() if p.requires_grad] == []
    assert objective.scale().item() == pytest.approx(2)
    assert "logit_scale" in objective.state_dict()


def test_bfloat16_autocast_does_not_round_the_similarities(make_batch, make_output, alone):
    batch = make_batch((0, 1, 2, 3), 4)
    output = make_output(batch)
    output = replace(
        output, image_embedding=output.image_embedding.float(), text_embedding=output.text_embedding.float()
    )
    objective = InfoNCE(temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        rough = alone(objective, output, batch).total
    torch.testing.assert_close(rough, alone(objective, output, batch).total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.001}, r"^temperature: 0\.001 must lie in \[1 / max_scale, 1\] = \[0\.01, 1\]$"),
        ({"temperature": 0.0}, r"^temperature: 0\.0 must lie in"),
        ({"temperature": 2.0}, r"^temperature: 2\.0 must lie in"),
        ({"label_smoothing": 1.0}, r"^label_smoothing: 1\.0 must lie in \[0, 1\)$"),
        ({"label_smoothing": -0.1}, r"^label_smoothing: -0\.1 must lie in \[0, 1\)$"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        InfoNCE(**arguments)
