"""Masked prediction in float64 against a plain version; its target is the teacher's and has no gradient."""

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput, ModelSizes, VisiblePatches
from mmlm.core.views import StepKey
from mmlm.objectives.masked_prediction import MaskedPrediction

SIZES = ModelSizes(
    embedding_width=5, patch_width=6, grid=(2, 3), decoder_width=None, vocab_size=None, patch_size=(2, 2)
)
START = StepKey(seed=1, step=2)


def make_objective(**settings) -> MaskedPrediction:
    torch.manual_seed(0)
    objective = MaskedPrediction(**({"masked_share": 0.5, "width": 8, "depth": 1, "num_heads": 2} | settings))
    objective.connect(SIZES)
    return objective.double()


@pytest.mark.parametrize("prefix", [0, 2], ids=["patches only", "class and register token kept"])
def test_equals_a_plain_version_with_gradients(make_batch, prefix):
    objective, batch = make_objective(), make_batch((0, 1, 1), 3)
    kept = objective.draw(batch, START)[objective.view]
    assert kept.shape == (3, 3)
    tokens = torch.randn(3, 3, 6, dtype=torch.float64, requires_grad=True)
    whole = torch.randn(3, prefix + 6, 6, dtype=torch.float64)
    visible = VisiblePatches(tokens, kept)
    output = ModelOutput(patches={objective.view: visible}, teacher=ModelOutput(image_tokens=whole))
    counts = {"patches": torch.tensor(12.0, dtype=torch.float64)}
    loss = objective(output, batch, START, counts)

    expected = 0
    for image in range(3):
        masked = [patch for patch in range(6) if patch not in kept[image].tolist()]
        predicted = objective.predictions(visible, torch.tensor([masked] * 3))[image]
        for row, patch in enumerate(masked):
            token = whole[image, prefix + patch]
            target = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
            expected = expected + (predicted[row] - target).square().mean()
    torch.testing.assert_close(loss.terms["masked_prediction"].value, expected / 12, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(one, [tokens, objective.mask_token]) for one in (loss.total, expected / 12))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_prediction_of_nothing_explains_nothing_and_a_perfect_one_all(make_batch):
    objective, batch = make_objective(), make_batch((0,), 1)
    kept = objective.draw(batch, START)[objective.view]
    visible = VisiblePatches(torch.zeros(1, 3, 6, dtype=torch.float64), kept)
    teacher = ModelOutput(image_tokens=torch.randn(1, 6, 6, dtype=torch.float64))
    output, counts = ModelOutput(patches={objective.view: visible}, teacher=teacher), objective.counts(batch, START)
    assert counts["patches"].item() == 3
    with torch.no_grad():
        objective.head.weight.zero_()
    figure = objective(output, batch, START, counts).figures["explained"]
    assert figure.value.item() == pytest.approx(0, abs=1e-12)


def test_an_encoder_that_sees_all_or_nothing_is_refused():
    sizes = ModelSizes(embedding_width=5, patch_width=6, grid=(2, 3), decoder_width=None, vocab_size=None)
    with pytest.raises(UserError, match=r"^encoder: masked patches need one that can see some of them only"):
        MaskedPrediction().connect(sizes)
