"""Captioning cross-entropy in float64 against PyTorch's over padded logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import CAPTION
from mmlm.objectives.captioning import Captioning

IGNORED = -1


def padded_cross_entropy(output: ModelOutput, batch: Batch, smoothing: float) -> Tensor:
    """The mean over real targets of [C, T - 1, V] logits, padding ignored."""
    mask = batch.target_mask
    hidden = torch.zeros(*mask.shape, output.hidden[CAPTION].shape[1], dtype=output.hidden[CAPTION].dtype)
    logits = hidden.masked_scatter(mask[..., None], output.hidden[CAPTION]) @ output.head_weight.T
    targets = batch.tokens[:, 1:].masked_fill(~mask, IGNORED)
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("captions", [5, 40], ids=["fewer rows than a filler block", "more"])
def test_equals_cross_entropy_over_padded_logits_with_gradients(make_batch, alone, make_output, smoothing, captions):
    batch = make_batch([0, 1, TEXT_ONLY, 0, 2] * (captions // 5), 3)
    output = make_output(batch)
    loss = alone(Captioning(smoothing), output, batch).total
    expected = padded_cross_entropy(output, batch, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    inputs = [output.hidden[CAPTION], output.head_weight]
    theirs = torch.autograd.grad(expected, inputs)
    for one, other in zip(torch.autograd.grad(loss, inputs), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_every_token_weighs_the_same_whatever_its_caption(make_batch, alone, make_output):
    batch = make_batch((0, 0), 1, lengths=(2, 7))
    output = make_output(batch)
    loss = alone(Captioning(), output, batch)
    targets = batch.targets[batch.target_mask]
    each = -(output.hidden[CAPTION] @ output.head_weight.T).log_softmax(-1)[torch.arange(7), targets]
    torch.testing.assert_close(loss.total, each.mean(), rtol=1e-10, atol=1e-10)
    term = loss.terms["captioning"]
    assert term.global_count.item() == 7
    torch.testing.assert_close(term.local_sum, each.sum(), rtol=1e-10, atol=1e-10)


def test_padding_ids_never_matter(make_batch, alone, make_output):
    batch = make_batch((0, 1, 1), 2)
    output = make_output(batch)
    before = alone(Captioning(), output, batch).total
    batch.tokens[torch.arange(7) >= batch.lengths[:, None]] = 9
    assert torch.equal(alone(Captioning(), output, batch).total, before)


def test_accuracy_counts_real_targets_only(make_batch, alone):
    batch = make_batch((0, 0, 0), 1, lengths=(3, 4, 2))
    targets = batch.targets[batch.target_mask]
    predicted = targets.clone()
    predicted[[1, 4]] = (targets[[1, 4]] + 1) % 11
    output = ModelOutput(hidden={CAPTION: F.one_hot(predicted, 11).float()}, head_weight=torch.eye(11))
    assert alone(Captioning(), output, batch).figures["accuracy"].value.item() == pytest.approx(4 / 6)


def test_bfloat16_hidden_states_are_judged_in_float32(make_batch, alone, make_output):
    batch = make_batch((0, 1, 1), 2)
    output = make_output(batch)
    hidden, head = output.hidden[CAPTION].detach().bfloat16(), output.head_weight.detach().bfloat16()
    loss = alone(Captioning(), ModelOutput(hidden={CAPTION: hidden}, head_weight=head), batch).total
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), alone(Captioning(), output, batch).total.double(), rtol=0.02, atol=0.02)


def test_a_batch_without_captions_has_loss_zero_and_finite_gradients(make_batch, alone, make_output):
    batch = make_batch((), 2, lengths=())
    output = make_output(batch)
    loss = alone(Captioning(), output, batch)
    assert loss.total.item() == 0
    assert loss.figures["accuracy"].value.item() == 0
    (gradient,) = torch.autograd.grad(loss.total, [output.head_weight])
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("smoothing", [1.0, -0.5])
def test_bad_label_smoothing_is_refused(smoothing):
    with pytest.raises(UserError, match=rf"^label_smoothing: {smoothing} must lie in \[0, 1\)$"):
        Captioning(smoothing)
