"""Parallel prediction mixed with captioning, in float64 against a loop over the formula."""

from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.model_output import ModelSizes
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.parallel_captioning import PARALLEL, ParallelCaptioning
from tests.objectives.slow_text import assert_same_gradients, slow_accuracy, slow_mean

SIZES = ModelSizes(embedding_width=4, patch_width=8, grid=(2, 2), decoder_width=5, vocab_size=11)
STEP_KEY = StepKey(seed=2, step=7)
INDEX = (0, 1, TEXT_ONLY, 0, 2, 1, TEXT_ONLY, 2)


def make(share: float = 0.5, **settings) -> ParallelCaptioning:
    objective = ParallelCaptioning(share, **settings)
    objective.connect(SIZES)
    return objective.double()


def parallel_output(make_output, batch: Batch):
    output = make_output(batch)
    return replace(output, hidden={PARALLEL: output.hidden[CAPTION]})


def all_targets(batch: Batch) -> list[tuple[int, int, int]]:
    return [(c, t, int(batch.tokens[c, t + 1])) for c, n in enumerate(batch.lengths.tolist()) for t in range(n - 1)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("captions", ["all", "with_image"])
def test_equals_the_formula_with_gradients(make_batch, make_output, alone, captions, smoothing):
    batch = make_batch(INDEX, 3)
    output = parallel_output(make_output, batch)
    objective = make(captions=captions, label_smoothing=smoothing)
    loss = alone(objective, output, batch, STEP_KEY)
    wanted = [target for target in all_targets(batch) if captions == "all" or INDEX[target[0]] != TEXT_ONLY]
    hidden, head = output.hidden[PARALLEL], output.head_weight
    assert_same_gradients(loss.total, slow_mean(hidden, head, batch, wanted, smoothing), [hidden, head])
    assert loss.terms["parallel_captioning"].global_count.item() == len(wanted)


def test_accuracies_are_those_of_both_kinds_apart(make_batch, make_output, alone):
    batch = make_batch((0, 1, TEXT_ONLY) * 30, 2)
    output = parallel_output(make_output, batch)
    objective = make()
    figures = alone(objective, output, batch, STEP_KEY).figures
    drawn = objective.in_parallel(batch, STEP_KEY).tolist()
    for name, kind in {"accuracy_parallel": True, "accuracy_causal": False}.items():
        wanted = [target for target in all_targets(batch) if drawn[target[0]] == kind]
        right = slow_accuracy(output.hidden[PARALLEL], output.head_weight, batch, wanted)
        assert right > 0
        assert figures[name].value.item() == pytest.approx(right)


def test_drawn_captions_are_masked_but_for_their_start_and_seen_whole_and_others_causal(make_batch):
    batch = make_batch(INDEX * 5, 3)
    objective = make()
    pattern = objective.draw(batch, STEP_KEY)[PARALLEL]
    drawn = objective.in_parallel(batch, STEP_KEY)
    assert 0 < drawn.sum() < len(drawn)
    assert pattern.mask_embedding is objective.mask_embedding
    for c, is_drawn in enumerate(drawn.tolist()):
        inputs = int(batch.lengths[c]) - 1
        assert pattern.visible[c] == (inputs if is_drawn else 0)
        assert pattern.masked[c].nonzero()[:, 0].tolist() == (list(range(1, inputs)) if is_drawn else [])


@pytest.mark.parametrize("share", [0.25, 0.75, 1.0])
def test_the_share_of_captions_with_an_image_is_drawn_and_no_other(make_batch, share):
    batch = make_batch((0, 1, 2, TEXT_ONLY) * 500, 3)
    drawn = make(share).in_parallel(batch, STEP_KEY)
    with_image = batch.image_index != TEXT_ONLY
    assert not drawn[~with_image].any()
    # Within 4 standard deviations of 1,500 draws.
    assert drawn[with_image].double().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 1500) ** 0.5)


def test_gradients_reach_the_mask_embedding_through_the_pattern(make_batch):
    objective = make()
    pattern = objective.draw(make_batch(INDEX, 3), STEP_KEY)[PARALLEL]
    torch.where(pattern.masked[..., None], pattern.mask_embedding, 0.0).sum().backward()
    assert objective.mask_embedding.grad.tolist() == [float(pattern.masked.sum())] * 5
