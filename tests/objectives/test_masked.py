"""Masked language modelling, in float64 against a loop over the formula."""

from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.model_output import ModelSizes
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.masked import MASKED, MaskedLanguageModelling
from tests.objectives.slow_text import assert_same_gradients, slow_accuracy, slow_mean

SIZES = ModelSizes(embedding_width=4, patch_width=8, grid=(2, 2), decoder_width=5, vocab_size=11)
STEP_KEY = StepKey(seed=2, step=7)
INDEX = (0, 1, TEXT_ONLY, 0, 2, 1, TEXT_ONLY, 2, 0, 1)


def make(share: float = 0.4, **settings) -> MaskedLanguageModelling:
    objective = MaskedLanguageModelling(share, **settings)
    objective.connect(SIZES)
    return objective.double()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("captions", ["all", "with_image"])
def test_equals_the_formula_with_gradients(make_batch, make_output, alone, captions, smoothing):
    batch = make_batch(INDEX, 3)
    output = make_output(batch)
    output = replace(output, hidden={MASKED: output.hidden[CAPTION]})
    objective = make(captions=captions, label_smoothing=smoothing)
    loss = alone(objective, output, batch, STEP_KEY)
    places = objective.masked(batch, STEP_KEY).nonzero().tolist()
    wanted = [(c, t, int(batch.tokens[c, t])) for c, t in places if captions == "all" or INDEX[c] != TEXT_ONLY]
    hidden, head = output.hidden[MASKED], output.head_weight
    assert_same_gradients(loss.total, slow_mean(hidden, head, batch, wanted, smoothing), [hidden, head])
    assert loss.terms["masked"].global_count.item() == len(wanted)
    assert loss.figures["accuracy"].value.item() == pytest.approx(slow_accuracy(hidden, head, batch, wanted))


@pytest.mark.parametrize("share", [0.01, 0.4, 1.0])
def test_masked_are_tokens_between_start_and_end_and_at_least_one_a_caption(make_batch, share):
    batch = make_batch((0,) * 60, 1, lengths=(2, 3, 4, 5, 6, 7) * 10)
    masked = make(share).masked(batch, STEP_KEY)
    for row, length in zip(masked, batch.lengths.tolist(), strict=True):
        places = row.nonzero()[:, 0].tolist()
        assert set(places) <= set(range(1, length - 1)), "neither start, end nor padding"
        assert len(places) >= min(1, length - 2)
        assert share < 1 or len(places) == length - 2


def test_one_that_has_to_be_masked_may_be_any_token(make_batch):
    batch = make_batch((0,) * 400, 1, lengths=(6,) * 400)
    masked = make(1e-9).masked(batch, STEP_KEY)
    assert masked.sum(dim=1).tolist() == [1] * 400
    assert masked.sum(dim=0)[1:5].tolist() == pytest.approx([100] * 4, abs=40)


def test_the_share_is_that_of_long_captions(make_batch):
    batch = make_batch((0,) * 100, 1, lengths=(42,) * 100, num_tokens=42)
    share = make(0.3).masked(batch, STEP_KEY).sum().item() / (100 * 40)
    assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


def test_the_whole_caption_is_visible(make_batch):
    batch, objective = make_batch(INDEX, 3), make()
    pattern = objective.draw(batch, STEP_KEY)[MASKED]
    assert torch.equal(pattern.visible, batch.lengths - 1)
    assert torch.equal(pattern.masked, objective.masked(batch, STEP_KEY))
    assert pattern.mask_embedding is objective.mask_embedding
