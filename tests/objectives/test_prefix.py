"""Prefix language modelling, in float64 against a loop over the formula."""

from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.prefix import PREFIX, PrefixLanguageModelling
from tests.objectives.slow_text import assert_same_gradients, slow_accuracy, slow_mean

STEP_KEY = StepKey(seed=2, step=7)
INDEX = (0, 1, TEXT_ONLY, 0, 2, 1, TEXT_ONLY, 2, 0, 1)


def suffix_targets(batch: Batch, visible: list[int]) -> list[tuple[int, int, int]]:
    """Every token of a caption that is not among its first ``visible`` ones, predicted one position before it."""
    wanted = []
    for c, length in enumerate(batch.lengths.tolist()):
        wanted += [(c, place - 1, int(batch.tokens[c, place])) for place in range(visible[c], length)]
    return wanted


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("captions", ["all", "with_image"])
def test_equals_the_formula_with_gradients(make_batch, make_output, alone, captions, smoothing):
    batch = make_batch(INDEX, 3)
    output = make_output(batch)
    output = replace(output, hidden={PREFIX: output.hidden[CAPTION]})
    objective = PrefixLanguageModelling(captions, smoothing)
    loss = alone(objective, output, batch, STEP_KEY)
    visible = objective.visible(batch, STEP_KEY).tolist()
    wanted = [one for one in suffix_targets(batch, visible) if captions == "all" or INDEX[one[0]] != TEXT_ONLY]
    assert len(wanted) < batch.num_targets
    hidden, head = output.hidden[PREFIX], output.head_weight
    assert_same_gradients(loss.total, slow_mean(hidden, head, batch, wanted, smoothing), [hidden, head])
    assert loss.terms["prefix"].global_count.item() == len(wanted)
    right = slow_accuracy(hidden, head, batch, wanted)
    assert loss.figures["accuracy"].value.item() == pytest.approx(right)


def test_the_pattern_is_the_prefix_and_masks_nothing(make_batch):
    batch, objective = make_batch(INDEX, 3), PrefixLanguageModelling()
    pattern = objective.draw(batch, STEP_KEY)[PREFIX]
    assert torch.equal(pattern.visible, objective.visible(batch, STEP_KEY))
    assert (pattern.masked, pattern.mask_embedding) == (None, None)


@pytest.mark.parametrize("length", [2, 3, 7])
def test_every_length_that_leaves_a_target_is_as_likely(make_batch, length):
    """With the start token alone in front, up to all inputs: then the end token is left."""
    batch = make_batch((0,) * 3000, 1, lengths=(length,) * 3000)
    objective = PrefixLanguageModelling()
    visible = objective.visible(batch, STEP_KEY)
    assert visible.unique().tolist() == list(range(1, length))
    expected, share = 3000 / (length - 1), 1 / (length - 1)
    deviation = (3000 * share * (1 - share)) ** 0.5
    assert all(abs(count - expected) <= 4 * deviation for count in visible.bincount()[1:].tolist())
    assert torch.equal(objective.chosen(batch, STEP_KEY).sum(dim=1), length - visible)
