"""Texts that are false of their image are candidates of the contrastive loss: its formula, ranks, micro-batches."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.check.batch import share_of
from mmlm.check.exactness import results
from mmlm.check.ranks import Ranks
from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.distributed import rank
from mmlm.core.views import StepKey
from mmlm.objectives import contrastive
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.decoupled import DecoupledInfoNCE
from mmlm.objectives.hardest_hinge import HardestHinge
from mmlm.objectives.kernels import tiled
from mmlm.objectives.shared.candidates import Candidates
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.sigmoid import Sigmoid
from tests.exactness.cells import STEP_KEY, Sum, make_step, whole_batch
from tests.objectives.conftest import build_batch, build_output

INDEX = (0, 0, 0, 1, 1, 2, TEXT_ONLY, 2, 3, 3)
FALSE = (1, 2, 4, 7, 9)
KEYS = (10, 11, 12, 13, 14, 15, 16, 10, 11, 18)
"""Caption 7 is false of image 2, and what image 0 is called; caption 1, false of image 0, is what image 3 is called."""


def with_flags(batch: Batch, false: tuple[int, ...]) -> Batch:
    """The batch with these captions false of their images, as ``collate`` says it."""
    negative = torch.zeros(len(batch.lengths), dtype=torch.bool)
    negative[list(false)] = True
    return replace(batch, compared=~negative, predicted=~negative, negative=negative)


def small_batch() -> Batch:
    return with_flags(build_batch(INDEX, 4, image_concept=(5, 6, 7, 5), caption_key=KEYS), FALSE)


def plain(image: Tensor, text: Tensor, scale: Tensor, positives: str, smoothing: float) -> Tensor:
    """NegCLIP's formula, one row at a time: images among all texts, true captions among images."""
    true = [c for c, i in enumerate(INDEX) if c not in FALSE and i != TEXT_ONLY]
    concept = (5, 6, 7, 5)
    own = {i: {KEYS[c] for c in true if INDEX[c] == i} for i in range(4)}

    def positive(i: int, c: int) -> bool:
        same_text = KEYS[c] in own[i] and positives != "own"
        same_concept = positives == "concept" and c not in FALSE and concept[i] == concept[INDEX[c]]
        return (c not in FALSE and INDEX[c] == i) or same_text or same_concept

    def cross_entropy(scores: list[Tensor], hits: list[bool]) -> Tensor:
        log_shares = F.log_softmax(torch.stack(scores), dim=0)
        target = torch.tensor(hits, dtype=torch.float64)
        return -(log_shares * ((1 - smoothing) * target / target.sum() + smoothing / len(scores))).sum()

    texts = [*true, *FALSE]
    rows = [
        cross_entropy([scale * image[i] @ text[c] for c in texts], [positive(i, c) for c in texts]) for i in range(4)
    ]
    columns = [
        cross_entropy([scale * image[i] @ text[c] for i in range(4)], [positive(i, c) for i in range(4)]) for c in true
    ]
    return (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2


@pytest.mark.parametrize("tile", [1024, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("positives", ["own", "text", "concept"])
def test_loss_and_gradients_are_those_of_the_plain_formula(monkeypatch, positives, smoothing, tile):
    def in_tiles(*given: object) -> tuple[Tensor, Tensor, Tensor]:
        return tiled.cross_entropies(*given, tile=tile)

    monkeypatch.setattr(contrastive, "cross_entropies", in_tiles)
    batch, objective = small_batch(), InfoNCE(0.2, positives=positives, label_smoothing=smoothing).double()
    output = build_output(batch)
    inputs = [output.image_embedding, output.text_embedding, objective.logit_scale]
    loss = objective(output, batch, StepKey(), {}).total
    expected = plain(*inputs[:2], objective.logit_scale.exp(), positives, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_false_text_pushes_images_away_and_has_no_target():
    """Without it the loss of its own image is lower, and its gradient points from the image that it is most like."""
    batch, objective = small_batch(), InfoNCE(0.2, positives="own").double()
    output = build_output(batch)
    loss = objective(output, batch, StepKey(), {}).total
    without = objective(output, replace(batch, negative=None), StepKey(), {}).total
    assert loss > without
    (gradient,) = torch.autograd.grad(loss, output.text_embedding)
    shares = gradient[list(FALSE)] @ torch.linalg.pinv(output.image_embedding.detach())
    assert (shares > 0).all(), "a sum of images with positive weights: every image is pushed away, and none drawn near"
    assert not torch.autograd.grad(without, output.text_embedding)[0][list(FALSE)].any()


def test_false_of_one_image_and_true_of_another():
    candidates = Candidates.of(Keys.of(small_batch()), "concept")
    everything = candidates.positive_with_false_texts(slice(0, 4), slice(0, 9))
    parts = [candidates.positive_with_false_texts(slice(0, 4), slice(i, i + 1)) for i in range(9)]
    assert torch.equal(everything, torch.cat(parts, dim=1))
    # Behind captions 0, 3, 5 and 8 stand the false 1, 2, 4, 7, 9: image 0 is called what 7 says, image 3 what 1 says.
    assert everything[:, 4:].nonzero().tolist() == [[0, 3], [3, 0]]


@pytest.mark.parametrize("kind", [DecoupledInfoNCE, HardestHinge, Sigmoid])
def test_other_comparisons_take_no_notice_of_them(kind):
    batch = small_batch()
    found = []
    for one in (batch, replace(batch, negative=None)):
        output = build_output(one)
        loss = kind().double()(output, one, StepKey(), {}).total
        found.append((loss, torch.autograd.grad(loss, output.text_embedding)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not found[0][1][list(FALSE)].any()
    assert not kind.reads_negatives


@pytest.mark.parametrize("false", [(), tuple(range(10))], ids=["none", "all"])
def test_a_batch_without_false_texts_or_without_true_ones(false):
    batch = with_flags(build_batch(INDEX, 4), false)
    output = build_output(batch)
    loss = InfoNCE().double()(output, batch, StepKey(), {}).total
    (gradient,) = torch.autograd.grad(loss, output.text_embedding)
    assert gradient.isfinite().all()
    if false:
        assert loss == 0
        return
    plain_loss = InfoNCE().double()(output, replace(batch, negative=None), StepKey(), {}).total
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=0)


def sum_of() -> Sum:
    return Sum({"contrastive": lambda: InfoNCE(0.3), "captioning": Captioning}, {"contrastive": 1.0, "captioning": 2.0})


def flagged() -> Batch:
    """Caption 2 is the only one of image 1, which then has none. The ranks below have false texts, or have none."""
    return with_flags(whole_batch(), (1, 2, 6, 12))


@pytest.mark.parametrize("size", [3, 1])
def test_micro_batches_change_nothing(size):
    whole = results(make_step(sum_of()), flagged(), 8, STEP_KEY)
    found = results(make_step(sum_of()), flagged(), size, STEP_KEY)
    for key, value in whole.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=f"{size}: {key}")


def of_a_rank(shares: tuple[int, ...]) -> dict[str, Tensor]:
    """What a rank does."""
    return results(make_step(sum_of()), share_of(flagged(), rank(), shares), 2, STEP_KEY)


def test_ranks_change_nothing():
    whole = results(make_step(sum_of()), flagged(), 8, STEP_KEY)
    with Ranks() as ranks:
        for shares in ((5, 3), (8, 0), (1, 5, 2)):
            for found in ranks.run(len(shares), of_a_rank, shares):
                for key, value in whole.items():
                    torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=f"{shares}: {key}")
